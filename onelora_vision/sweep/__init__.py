"""Methods compared fairly on one task and data set: each at its own best learning rate, with several seeds."""
