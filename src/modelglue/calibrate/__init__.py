"""Statistics of a model on calibration text, for the merge methods that weigh by them."""
