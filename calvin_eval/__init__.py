"""CALVIN's benchmark: play table, tasks, chains, demonstrators, recorder, evaluator. Needs no torch."""
