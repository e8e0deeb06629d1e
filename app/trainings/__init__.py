"""Training from the page: uploaded images, runs in separate processes, and their state on disk."""
