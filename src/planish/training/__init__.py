"""Training: `fit` yields a record per epoch."""
