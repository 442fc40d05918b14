"""CALVIN data sets on disk, made into batches of windows."""
