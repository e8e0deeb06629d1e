"""Pictures with metric depth: `formats.open_frames` opens them, `dataset.DepthDataset` feeds a network."""
