"""Metrics of classifiers, depth and generated images."""

FEATURES = ("inception", "dinov2", "embedded")
"""Models that images are compared by, see `features.open_features`."""
