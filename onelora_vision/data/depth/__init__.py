"""Pictures with metric depth: `formats.open_frames` opens them, `dataset.DepthDataset` prepares them for a network."""
