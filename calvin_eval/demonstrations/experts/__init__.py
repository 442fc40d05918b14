"""Scripted, memory-free demonstrators for all 34 tasks in all four scenes."""

from calvin_eval.demonstrations.experts.policy import DEMONSTRATORS, Expert, demonstrate

__all__ = ["DEMONSTRATORS", "Expert", "demonstrate"]
