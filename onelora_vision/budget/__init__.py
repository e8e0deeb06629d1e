"""The cost of a method before running it: parameter counts, and memory of a training step."""
