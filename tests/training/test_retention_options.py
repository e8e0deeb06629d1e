import pytest

from onelora_vision.errors import InputError
from onelora_vision.training.command_line import parse_config
from train_scripts.train_classification import ClassificationConfig
from train_scripts.train_depth import DepthConfig
from train_scripts.train_dit import DiTConfig

CONFIGS = [ClassificationConfig, DepthConfig, DiTConfig]
OTHER_BASE = "--pretrained_model_name_or_path=somebody/else"


@pytest.mark.parametrize(("config", "data"), zip(CONFIGS, ("glyphs", "rooms", "glyphs")))
def test_the_embedded_bases_have_their_own_old_data(config, data):
    assert parse_config(config, []).retention_dataset is None and not parse_config(config, []).retention
    assert parse_config(config, ["--retention"]).retention_dataset == data
    with pytest.raises(InputError, match=f"--retention_dir has no effect with --retention_dataset {data}"):
        parse_config(config, ["--retention", f"--retention_dataset={data}", "--retention_dir=x"])


@pytest.mark.parametrize("config", CONFIGS)
def test_of_other_bases_the_user_names_it(config):
    with pytest.raises(InputError) as caught:
        parse_config(config, ["--retention", OTHER_BASE])
    assert str(caught.value) == (
        "--retention: the training data of somebody/else is unknown; give its old data with --retention_dataset "
        "and --retention_dir"
    )
    more = ["--fid_features=dinov2"] if config is DiTConfig else []
    found = parse_config(config, ["--retention", OTHER_BASE, "--retention_dir=old", *more])
    assert found.retention_dataset == ("jsonl" if config is DepthConfig else "imagefolder")


@pytest.mark.parametrize("config", CONFIGS)
def test_flags_without_effect_or_sense_are_refused(config):
    for flag in ("--retention_dataset=x", "--retention_dir=x", "--retention_samples=5"):
        name = flag.partition("=")[0]
        with pytest.raises(InputError, match=f"{name} has no effect without --retention"):
            parse_config(config, [flag])
    with pytest.raises(InputError, match="--retention_samples is 0, but must be at least"):
        parse_config(config, ["--retention", "--retention_samples=0"])


def test_a_data_set_in_a_folder_needs_it_and_one_that_does_not_exist_is_refused():
    with pytest.raises(InputError, match="--retention_dataset cifar10 needs --retention_dir"):
        parse_config(ClassificationConfig, ["--retention", "--retention_dataset=cifar10"])
    with pytest.raises(InputError, match="--retention_dataset nyu needs --retention_dir"):
        parse_config(DepthConfig, ["--retention", "--retention_dataset=nyu"])
    with pytest.raises(InputError, match="did you mean 'rooms'"):
        parse_config(DepthConfig, ["--retention", "--retention_dataset=room"])


def test_flags_that_only_the_old_data_takes_have_an_effect():
    column = "--label_column=kind"
    with pytest.raises(InputError, match="--label_column has no effect with --dataset_name embedded"):
        parse_config(ClassificationConfig, ["--retention", column])
    known = ["--retention", "--retention_dataset=somebody/pictures", column]
    assert parse_config(ClassificationConfig, known).label_column == "kind"
    with pytest.raises(InputError, match="--on_bad_image has no effect with --dataset_name streets"):
        parse_config(DepthConfig, ["--retention", "--on_bad_image=skip"])
    parse_config(DepthConfig, ["--retention", "--retention_dir=old", "--on_bad_image=skip"])


def test_samples_cannot_be_measured_without_features():
    parse_config(DiTConfig, ["--retention", "--data_dir=pictures"])  # the base is embedded, so its classifier is known
    for flags in (["--fid_features=none"], [OTHER_BASE, "--retention_dir=old"]):
        with pytest.raises(
            InputError, match="--retention measures samples: choose their features with --fid_features"
        ):
            parse_config(DiTConfig, ["--retention", *flags])
