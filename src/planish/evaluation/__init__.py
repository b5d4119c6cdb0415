"""Attacks on a test set, and the distances of the nearest adversarial images."""
