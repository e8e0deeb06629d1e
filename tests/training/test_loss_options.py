import pytest

from onelora_vision.errors import InputError
from onelora_vision.training.command_line import parse_config
from train_scripts.train_dit import EMBEDDED_DISTILLATION, DiTConfig


def config(*flags):
    return parse_config(DiTConfig, list(flags))


OWN_DATA = ("--data_dir=pictures",)


def test_without_flags_the_loss_is_plain_and_the_guidance_as_ever():
    assert config(*OWN_DATA).loss_settings().facts() == {}
    assert (config(*OWN_DATA).sampling().guidance_scale, config(*OWN_DATA).sampling().guidance_base) == (4.0, False)
    assert config(*OWN_DATA, "--guidance_scale", "1.5").sampling().guidance_scale == 1.5


def test_the_embedded_job_is_trained_towards_guidance_unless_a_flag_says_how_to_guide(tmp_path):
    assert config().loss_settings().facts() == {"guidance_distillation": EMBEDDED_DISTILLATION}
    assert config().sampling().guidance_scale == 1
    assert config("--guidance_distillation=1.5").guidance_distillation == 1.5
    (tmp_path / "lora.json").write_text('{"peft_type": "LORA"}')
    others = "guidance_scale=4", "guidance_base", "guidance_scales=1,2", f"peft_config={tmp_path / 'lora.json'}"
    for other in (*others, "pretrained_model_name_or_path=embedded/sit", "dataset_name=glyphs"):
        assert config(f"--{other}").guidance_distillation is None


def test_the_flags_reach_the_settings():
    flags = ("--snr_gamma=5", "--timestep_sampling=logit_normal", "--logit_mean=-0.5", "--logit_std=2")
    settings = config(*flags, "--guidance_distillation=1.5", "--guidance_interval=0,0.8", "--guidance_channels=3")
    loss = settings.loss_settings()
    assert (loss.snr_gamma, loss.timestep_sampling, loss.logit_mean, loss.logit_std) == (5, "logit_normal", -0.5, 2)
    assert (loss.guidance_distillation, loss.guidance_interval, loss.guidance_channels) == (1.5, (0, 0.8), 3)


def test_a_model_trained_towards_guidance_is_sampled_without():
    assert config("--guidance_distillation=1.5").sampling().guidance_scale == 1
    assert config("--guidance_distillation=1.5", "--guidance_scale=1", "--guidance_scales=1").sampling()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--guidance_distillation=1.5 --guidance_scale=2", "--guidance_scale with --guidance_distillation"),
        (
            "--guidance_distillation=1.5 --guidance_base",
            "--guidance_base with --guidance_distillation would guide twice",
        ),
        ("--guidance_distillation=1.5 --guidance_scales=1,2", "--guidance_scales with --guidance_distillation"),
        ("--guidance_distillation=2.5", "must be greater than 1 and less than 2"),
        ("--guidance_base --guidance_scale=1", "no effect with --guidance_scale 1"),
        ("--guidance_base --guidance_scale=1 --guidance_scales=1", "no effect with --guidance_scale 1"),
        ("--snr_gamma=-1", "snr_gamma=-1.0: must be greater than 0"),
        (
            "--timestep_sampling=logit-normal",
            "--timestep_sampling is logit-normal, but must be uniform or logit_normal",
        ),
        ("--logit_std=2", "no effect without timestep_sampling=logit_normal"),
    ],
)
def test_flags_that_make_no_sense_are_one_line(flags, message):
    with pytest.raises(InputError, match=message) as caught:
        config(*flags.split())
    assert "\n" not in str(caught.value)


def test_a_sweep_may_begin_without_guidance():
    settings = config("--guidance_base", "--guidance_scale=1", "--guidance_scales=1,1.5").sampling()
    assert settings.guidance_base and not settings.uses_base
