"""The command line: one file a verb, the only place where roboflamingo meets calvin_eval."""
