"""The ball of the tests of calls."""

EPS = 0.06
"""Linf: within it about half of the images of `lesson` can be broken."""
EPS_L2 = 0.35
"""L2: the same."""
