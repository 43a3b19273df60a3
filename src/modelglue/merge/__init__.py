"""Many checkpoints into one of the same size."""
