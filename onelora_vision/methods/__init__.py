"""Fine-tuning methods by name, and how each is put on a model."""
