import pytest

from onelora_vision.errors import InputError
from onelora_vision.training.recipes import config_file, find_recipes


def test_a_recipe_is_found_by_its_name_and_a_file_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = next(recipe for recipe in find_recipes("depth") if recipe.name == "nyu_to_kitti")
    assert config_file("nyu_to_kitti") == config_file("nyu-to-KITTI") == str(recipe.file)
    (tmp_path / "nyu_to_kitti").write_text("seed: 1")
    assert config_file("nyu_to_kitti") == "nyu_to_kitti"
    assert config_file("my.yaml") == "my.yaml"  # whose reader says that it is missing


def test_an_unknown_name_is_answered_with_the_nearest(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="no recipe of that name; did you mean 'kitti_to_nyu'"):
        config_file("kiti_to_nyu")


def test_names_are_unique():
    names = [recipe.name.replace("_", "-") for recipe in find_recipes()]
    assert len(names) == len(set(names)) > 10
