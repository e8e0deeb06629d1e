"""Fine-tuning methods by name, and applying them to a model."""
