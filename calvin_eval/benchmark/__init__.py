"""CALVIN's tasks, chains, sentences and rates."""
