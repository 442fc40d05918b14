"""Runs policies through episodes, and reports what came of it."""
