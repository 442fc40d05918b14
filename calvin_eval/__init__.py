"""CALVIN's benchmark: play table, tasks, chains, scripted experts, recorder, evaluator. Needs no torch."""
