"""Files: atomic writes that never replace a user's own files; caches; texts and weights of unknown origin."""
