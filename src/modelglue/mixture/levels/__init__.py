"""Mixture levels: one file each, found by discovery."""
