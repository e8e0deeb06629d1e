"""Trained adapters with their bases, ready for use: generating images, predicting classes, estimating depth."""
