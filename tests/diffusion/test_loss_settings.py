import pytest

from onelora_vision.diffusion.loss_settings import LossSettings
from onelora_vision.errors import InputError


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"timestep_sampling": "logit-normal"}, "did you mean 'logit_normal'"),
        ({"snr_gamma": 0.0}, "snr_gamma=0.0: must be greater than 0"),
        ({"snr_gamma": float("nan")}, "snr_gamma=nan"),
        ({"timestep_sampling": "logit_normal", "logit_std": 0.0}, "logit_std=0.0: need a normal distribution"),
        ({"timestep_sampling": "logit_normal", "logit_mean": float("inf")}, "logit_mean=inf"),
        ({"logit_mean": 1.0}, "have no effect without timestep_sampling=logit_normal"),
        ({"guidance_distillation": 1.0}, "must be greater than 1 and less than 2"),
        ({"guidance_distillation": 2.0}, r"at the scale 1 / \(2 - guidance_distillation\)"),
    ],
)
def test_what_cannot_be_trained_with_is_one_line(settings, message):
    with pytest.raises(InputError, match=message):
        LossSettings(**settings)


def test_the_facts_are_what_differs_from_the_plain_loss():
    assert LossSettings(guidance_channels=3).facts() == {}
    settings = LossSettings(5.0, "logit_normal", 0.5, 1.5, 1.25)
    assert settings.facts() == {
        "guidance_distillation": 1.25,
        "snr_gamma": 5.0,
        "timesteps": "logit-normal, mean 0.5, deviation 1.5",
    }
