"""Is a measured robustness real? Checks that look for reasons why not, and measures of the geometry behind it."""
