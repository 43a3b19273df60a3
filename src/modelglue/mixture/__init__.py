"""Many checkpoints into one that routes."""
