import numpy as np
import pytest
from PIL import Image

from onelora_vision.cli import main
from onelora_vision.data.classes.formats import open_class_images
from onelora_vision.data.classes.vtab import TASKS
from onelora_vision.errors import InputError
from onelora_vision.sweep import vtab


@pytest.fixture
def root(tmp_path):
    """Two tasks of VTAB-1k with a few images."""
    rng = np.random.default_rng(0)
    for task in ("dtd", "kitti"):
        lists = {"train800": 6, "val200": 3, "test": 4}
        for name, count in lists.items():
            folder = tmp_path / "vtab" / task / "images" / name
            folder.mkdir(parents=True)
            lines = []
            for number in range(count):
                pixels = rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number} a.jpg")
                lines.append(f"images/{name}/{number} a.jpg {number % 3}\n")
            (tmp_path / "vtab" / task / f"{name}.txt").write_text("".join(lines))
    return tmp_path / "vtab"


def test_a_task_has_its_splits(root):
    sizes = {split: len(open_class_images("vtab/dtd", root, split)) for split in ("train", "validation", "test")}
    assert sizes == {"train": 6, "validation": 3, "test": 4}
    images = open_class_images("vtab/dtd", root, "test")
    assert images.class_names == ["0", "1", "2"] and images.labels == [0, 1, 2, 0]
    assert images.read(3).size == (32, 32) and len(TASKS) == 19


def test_training_and_validation_are_joined(root):
    train, validation = (open_class_images("vtab/dtd", root, split) for split in ("train", "validation"))
    both = train.joined(validation)
    assert len(both) == 9 and both.labels == [0, 1, 2, 0, 1, 2, 0, 1, 2]
    assert both.images == [*train.images, *validation.images]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("vtab/dtdd", None, "did you mean 'dtd'"),
        ("vtab/svhn", None, "has no train800.txt"),
        ("vtab/dtd", "images/a.jpg", "the line 'images/a.jpg' is not 'path label'"),
        ("vtab/dtd", "a.jpg 7", "class 7, but training has 0 to 2"),
        ("vtab/dtd", "", "lists no images"),
        ("vtab/dtd", "../../secret.jpg 1", "secret.jpg"),
    ],
)
def test_what_is_wrong_is_one_line(root, name, text, message):
    if text is not None:
        (root / "dtd" / "test.txt").write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        open_class_images(name, root, "test").read(0)
    assert "\n" not in str(caught.value)


def test_the_sweep_walks_the_tasks_and_writes_the_table(root, tmp_path, capsys):
    command = [
        "sweep",
        "classification",
        "--dataset_name",
        "vtab",
        "--data_dir",
        str(root),
        "--methods",
        "onelora,head",
    ]
    command += ["--learning_rates", "1e-2", "--seeds", "0", "--max_train_steps", "1", "--train_batch_size", "2"]
    command += ["--validation_loss_steps", "0", "--output_dir", str(tmp_path / "out"), "--workers", "2"]
    with pytest.raises(SystemExit) as ended:
        main(command)
    assert ended.value.code == 0, capsys.readouterr().err
    table = (tmp_path / "out" / "table.md").read_text()
    assert table in capsys.readouterr().out
    heads, _, *rows = [line.split(" | ") for line in table.splitlines() if line.startswith("|")]
    assert heads == ["| method", "dtd", "kitti", "natural", "specialized", "structured", "mean of groups |"]
    for row in rows:
        natural, structured = float(row[1]), float(row[2])
        assert float(row[3]) == natural and row[4] == "" and float(row[5]) == structured
        assert float(row[6].strip(" |")) == pytest.approx((natural + structured) / 2, abs=0.11)
    (final,) = (tmp_path / "out" / "dtd" / "runs" / "onelora").glob("*/test-seed-0/config.yaml")
    assert "train_on_validation: true" in final.read_text()


def test_a_folder_without_tasks_is_refused(tmp_path):
    with pytest.raises(InputError, match="no folder of a task of VTAB-1k"):
        vtab.tasks_in(tmp_path)


def test_a_table_of_somebody_else_is_not_replaced(tmp_path):
    (tmp_path / "table.md").write_text("mine")
    with pytest.raises(InputError, match="is not empty and no sweep's"):
        vtab.sweep_tasks({}, tmp_path, lambda sweep: None)
    assert (tmp_path / "table.md").read_text() == "mine"
