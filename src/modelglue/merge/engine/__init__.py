"""A plan carried out: to disk, or into a live module."""
