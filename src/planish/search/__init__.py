"""The inner problem: objectives, step rules, the loops that ascend, the walk to the nearest adversarial image."""
