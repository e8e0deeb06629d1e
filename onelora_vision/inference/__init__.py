"""A trained adapter with its base, ready to be used: images drawn, classes predicted, depth estimated."""
