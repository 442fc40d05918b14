"""Data sets of one kind written as another."""
