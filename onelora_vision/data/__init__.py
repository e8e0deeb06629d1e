"""Datasets: images with classes, depth, latents, text, and the order in which a run reads them."""
