"""Training from the page: images that are sent, runs that are processes of their own, and what is known of them on disk."""
