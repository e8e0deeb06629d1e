"""How a program of this package runs: commands and their exit codes, progress, devices, the hub."""
