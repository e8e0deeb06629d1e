"""Training runs: settings, loop, checkpoints, evaluations, results and report."""
