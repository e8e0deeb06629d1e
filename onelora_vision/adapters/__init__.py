"""Adapter files: what they contain, and how they are read, written and checked."""
