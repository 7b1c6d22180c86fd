"""One training: from a config to its parts, the step, the one loop, the one evaluator, what it writes."""
