"""What is trained and measured: generation, classification, depth."""
