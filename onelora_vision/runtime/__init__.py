"""Program runtime: commands and their exit codes, progress bars, devices, the hub."""
