"""A studio in the browser: load, swap, blend and compare adapters. ``python -m app`` opens it."""
