"""Images with one class each: `formats.open_class_images` opens them, `dataset.ClassImageDataset` transforms them."""
