"""CALVIN folders (CALVIN SPEC 1.12)."""
