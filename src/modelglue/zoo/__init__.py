"""Which models belong together, and why the others do not."""
