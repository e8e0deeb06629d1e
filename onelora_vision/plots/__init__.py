"""Figures and image grids, saved as PNG."""
