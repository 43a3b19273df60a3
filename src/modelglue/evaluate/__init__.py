"""How good is a model: tasks, scores per item, intervals."""
