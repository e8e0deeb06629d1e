"""Which d numbers per layer to train: rows of ΔW along fixed directions, of which 1LoRA's ones are the simplest."""
