"""Suites: tasks over published datasets, ready to be used; one file a dataset.

A dataset's file says where it is published and in which form, and turns its records into items of
our kinds. `paper.py` pairs them; `task.py` makes tasks of the pairs.
"""
