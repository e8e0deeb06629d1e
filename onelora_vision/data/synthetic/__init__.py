"""Data generated on the fly: handwriting, printed glyphs, rendered scenes, arithmetic."""
