"""The whole recipe: configuration, stages, run directory."""
