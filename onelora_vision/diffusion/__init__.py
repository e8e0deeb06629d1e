"""Class-conditional diffusion: the schedule and its loss, samplers, and the settings of sampling."""
