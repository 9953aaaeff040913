"""A sweep: a study at every combination of some settings' values, checked together before the first begins."""
