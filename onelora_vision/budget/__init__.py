"""What a method costs before it runs: counts of parameters, and memory of a training step."""
