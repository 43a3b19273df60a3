"""Merge methods: pure tensor maths, one file a method, found by discovery."""
