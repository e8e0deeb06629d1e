"""Datasets: images with classes, depth, latents, and the streams that feed them to a run."""
