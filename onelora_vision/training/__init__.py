"""A run: its settings, the loop, checkpoints, evaluations, results and report."""
