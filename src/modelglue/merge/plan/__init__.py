"""Configuration → every output tensor resolved and checked, no weight read yet."""
