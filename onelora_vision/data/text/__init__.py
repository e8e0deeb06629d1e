"""Questions and answers for fine-tuning language models."""
