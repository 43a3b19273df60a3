"""Task kinds: one file each, found by discovery."""
