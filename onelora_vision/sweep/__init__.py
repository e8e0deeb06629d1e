"""Fair comparison of methods on one task and dataset: each at its best learning rate, with several seeds."""
