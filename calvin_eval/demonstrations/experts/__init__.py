"""Scripted, memory-free experts for all 34 tasks in all four scenes."""

from calvin_eval.demonstrations.experts.policy import EXPERTS, Expert, demonstrate

__all__ = ["EXPERTS", "Expert", "demonstrate"]
