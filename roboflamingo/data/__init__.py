"""Data sets of any kind, packed into one store and made into batches of windows."""
