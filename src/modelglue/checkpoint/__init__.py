"""A model on disk: opened lazily, read by rows, written atomically."""
