"""A study: the same rows, model and budgets for every arm, several seeds, and how sure the differences are."""
