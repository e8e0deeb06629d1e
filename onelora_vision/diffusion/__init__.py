"""Class-conditional diffusion: objectives and losses, samplers, guidance, and sampling settings."""
