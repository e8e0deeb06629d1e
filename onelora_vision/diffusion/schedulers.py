"""diffusers' schedulers as samplers for bases that predict the noise, at evenly spaced timesteps."""

import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_ddim import DDIMSchedulerOutput

from onelora_vision.errors import InputError


class SpacedDDIM(DDIMScheduler):
    """DDIM with η = 0 (Song et al. 2020, arXiv 2010.02502, equation 12) from each visited timestep to the next.

    diffusers' own DDIM always goes back by T // steps, regardless of the next timestep. Results differ if this does not
    divide the schedule evenly.
    """

    def step(self, output: torch.Tensor, t: torch.Tensor, x: torch.Tensor) -> DDIMSchedulerOutput:
        """Step from x_t (N, C, H, W) and the predicted noise to x at the next timestep, or x_0 after the last one."""
        index = int((self.timesteps == t).nonzero())
        following = self.timesteps[index + 1 : index + 2].cpu()
        now = self.alphas_cumprod[t.cpu()]
        then = self.alphas_cumprod[following].squeeze() if len(following) else torch.ones(())
        x0 = (x - (1 - now).sqrt() * output) / now.sqrt()
        return DDIMSchedulerOutput(then.sqrt() * x0 + (1 - then).sqrt() * output, x0)


def make_scheduler(sampler: str, base_config: dict, learned_variance: bool):
    """Make diffusers' scheduler for a sampler name, with the noise schedule that the model was trained with."""
    base = {key: base_config[key] for key in ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule")}
    base["trained_betas"] = base_config.get("trained_betas")
    if sampler == "ddim":
        return SpacedDDIM(**base)
    if sampler == "dpm++":
        return DPMSolverMultistepScheduler(**base, algorithm_type="dpmsolver++", timestep_spacing="linspace")
    variance = "learned_range" if learned_variance else "fixed_small"
    return DDPMScheduler(**base, clip_sample=False, variance_type=variance)


def require_steps(steps: int, total: int) -> None:
    """Raise an `InputError` if a sampler has more steps than the noise schedule has timesteps."""
    if steps > total:
        raise InputError(f"steps={steps}: the noise schedule has {total} timesteps")


def set_timesteps(scheduler, steps: int, device: torch.device | str = "cpu") -> None:
    """Set a sampler's timesteps. DDIM's and DDPM's are evenly spaced from T - 1 to 0, rounded, as in the original DiT.

    Raises:
        InputError: there are more steps than timesteps in the schedule.
    """
    total = scheduler.config.num_train_timesteps
    require_steps(steps, total)
    if isinstance(scheduler, DPMSolverMultistepScheduler):
        scheduler.set_timesteps(steps, device=device)
        return
    timesteps = torch.linspace(total - 1, 0, steps, dtype=torch.float64).round().long()
    if isinstance(scheduler, DDPMScheduler):
        scheduler.set_timesteps(timesteps=timesteps.tolist(), device=device)
    else:
        scheduler.timesteps = timesteps.to(device)
