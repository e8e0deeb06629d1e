"""Images with one class each: `formats.open_class_images` opens them, `dataset.ClassImageDataset` feeds a network."""
