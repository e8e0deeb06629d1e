"""Data that is made on the spot: handwriting, printed glyphs, rendered scenes."""
