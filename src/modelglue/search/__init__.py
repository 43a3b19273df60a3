"""Which models, which coefficients. Sees callables, never a model."""
