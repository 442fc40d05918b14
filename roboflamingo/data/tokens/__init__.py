"""Tokens that a frozen vision encoder makes of packed images: computed once per data set, and mapped into memory."""
