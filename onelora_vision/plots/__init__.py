"""Figures and sheets of pictures, saved as PNG."""
