"""What a user asks for: mergekit's YAML, read and checked."""
