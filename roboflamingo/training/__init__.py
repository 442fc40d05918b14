"""Training: one loop for every policy, which may be killed at any moment and continues where it was saved."""
