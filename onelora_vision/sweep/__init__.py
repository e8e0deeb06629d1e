"""Methods compared fairly on one task and dataset: each at its own best learning rate, with several seeds."""
