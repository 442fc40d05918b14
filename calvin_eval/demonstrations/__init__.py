"""Scripted experts, and what records them as CALVIN folders."""
