"""The three skills of the miniature zoo, generated from nothing.

Everything is drawn from streams named by (seed, purpose), so any part can be made again alone.
"""
