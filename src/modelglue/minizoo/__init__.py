"""A miniature of the paper's zoo of checkpoints, trained from nothing in minutes."""
