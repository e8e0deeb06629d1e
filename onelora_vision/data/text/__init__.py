"""Questions and answers to fine-tune language models on."""
