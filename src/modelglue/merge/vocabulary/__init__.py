"""Models whose vocabularies differ, united token by token."""
