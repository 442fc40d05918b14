"""Demonstrators, and what records them as CALVIN folders."""
