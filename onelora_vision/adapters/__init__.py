"""Adapter files: what is in them, how they are read, written and checked."""
