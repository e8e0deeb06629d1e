"""What is trained and evaluated: generation, classification, depth, language."""
