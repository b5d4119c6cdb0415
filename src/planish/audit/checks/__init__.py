"""The audit's checks, one file for each group: the registry finds them."""
