"""Base models: how they are loaded, fitted to new data, and where adapters go on them."""
