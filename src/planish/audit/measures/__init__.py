"""Measures of the geometry of a model: linearity, curvature, bounds, certificates, surfaces."""
