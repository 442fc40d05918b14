"""CALVIN's tasks, chains, instructions and rates."""
