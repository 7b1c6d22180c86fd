"""Weights in files, and how they become leaves of a tree: load plans, checkpoints, other libraries' files."""
