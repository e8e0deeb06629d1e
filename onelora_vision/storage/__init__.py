"""Files: written whole or not at all, never over a user's own; caches; texts and weights of unknown origin."""
