"""Metrics for classifiers, depth and generated images."""

FEATURES = ("inception", "dinov2", "embedded")
"""Models whose features images are compared by, see `features.open_features`."""
