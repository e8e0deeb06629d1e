"""Base models: loading them, fitting them to new data, and the layers that adapters attach to."""
