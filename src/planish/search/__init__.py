"""The inner problem: objectives, step rules, the loops that ascend, the loss as seen from an image."""
