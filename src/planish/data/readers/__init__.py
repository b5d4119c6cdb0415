"""Readers of image sets, one file for each kind: the registry finds them."""
