"""The app without its page: what it draws is what the library draws, for every user alone."""

import threading
from dataclasses import replace
from types import SimpleNamespace

import gradio as gr
import numpy as np
import pytest
import torch
from PIL import Image

from app.depth_maps import Look
from app.drawing import Request, own_guidance
from app.grid import parse_axis
from app.restore import restore
from app.runs import State
from app.studio import Studio
from app.tabs.common import for_this_picture
from onelora_vision.adapters.file import read_adapter, write_adapter
from onelora_vision.data.images import read_image
from onelora_vision.diffusion.settings import SamplingSettings
from onelora_vision.errors import InputError
from onelora_vision.inference.loading import load_adapted

REQUEST = Request(("2",), seed=3, steps=3, num_images=2)
SETTINGS = SamplingSettings("dpm++", 3, 2.5)


@pytest.fixture(scope="module")
def studio(tmp_path_factory):
    return Studio(root=tmp_path_factory.mktemp("studio"))


@pytest.fixture
def session(studio, request):
    """A fresh user, without adapters at work."""
    session = studio.session(request.node.name)
    session.enabled.clear()
    return session


@pytest.fixture(scope="module")
def adapters(make_adapter):
    """Two adapters for drawing."""
    return [make_adapter("generation", seed) for seed in (1, 2)]


def last(drawing):
    """The end of a drawing as pixels: (base, adapted)."""
    *_, end = drawing
    return [[np.asarray(Image.open(picture.image)) for picture in part] for part in (end.base, end.adapted)]


def use(studio, session, *files, weights=(1.0, 1.0)):
    """Open adapters and enable them alone."""
    session.enabled.clear()
    for file, weight in zip(files, weights):
        (name,), _ = studio.upload(session, [file])
        session.set(name, True, weight)


def pixels(images):
    return [(image.permute(1, 2, 0) * 255).round().byte().numpy() for image in images]


@pytest.mark.parametrize("method", ["onelora", "onelora_norms", "bitfit", "lora", "dora", "vera", "mora1", "full"])
def test_base_and_adapted_pictures_are_the_librarys_with_every_method(studio, session, make_adapter, method):
    file = make_adapter("generation", 5, method)
    use(studio, session, file)
    base, adapted = last(studio.drawer.draw(session, REQUEST))
    generator = load_adapted(file)
    for found, is_adapted in ((base, False), (adapted, True)):
        expected = pixels(generator.sample(["2", "2"], [3, 4], SETTINGS, adapted=is_adapted))
        assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))
    assert not np.array_equal(base[0], adapted[0])


@pytest.mark.parametrize("method", ["onelora", "lora"])
def test_the_base_guides_the_mix_and_no_view_is_changed_for_it(studio, session, make_adapter, method):
    file = make_adapter("generation", 6, method)
    use(studio, session, file)
    wanted = replace(REQUEST, guidance_base=True)
    drawing = studio.drawer.draw(session, wanted)
    views = set()
    for state in drawing:  # noqa: B007 - the last one
        mix = session.mix("generation")
        layers = [m for m in studio.bases.view(mix).model.modules() if hasattr(m, "disable_adapters")]
        views |= {layer.disable_adapters for layer in layers}
    assert views == {False}
    generator, settings = load_adapted(file), replace(SETTINGS, guidance_base=True)
    for part, is_adapted in ((state.base, False), (state.adapted, True)):
        expected = pixels(generator.sample(["2", "2"], [3, 4], settings, adapted=is_adapted))
        for picture, other in zip(part, expected, strict=True):
            found = np.asarray(Image.open(picture.image)).astype(int)
            assert np.abs(found - other).max() <= 2  # two batches in the place of one
    own = last(studio.drawer.draw(session, REQUEST))[1]
    assert not np.array_equal(own[0], np.asarray(Image.open(state.adapted[0].image)))
    assert restore(session, state.adapted[0].image).request == replace(wanted, sampler="dpm++")


def test_the_page_follows_the_guidance_of_the_adapters_once(studio, session, make_adapter):
    session.set("handwriting-dit", True, 1.0)
    shipped = session.mix("generation")
    assert own_guidance(shipped) == (4.0, True) and own_guidance(shipped.without_adapters()) == (2.5, False)
    assert session.follow_guidance(shipped) and not session.follow_guidance(shipped.at_weight(0.5))
    distilled = read_adapter(make_adapter("generation", 7))
    distilled.info.extra = {"training": {"guidance_distillation": 1.5}}
    file = write_adapter(distilled.config, distilled.tensors, distilled.info, session.output() / "d.safetensors")
    use(studio, session, file)
    assert own_guidance(session.mix("generation")) == (1.0, False)
    assert session.follow_guidance(session.mix("generation"))


def test_guidance_that_has_no_effect_or_is_doubled_is_refused(studio, session, make_adapter):
    with pytest.raises(InputError, match="no effect with Guidance 1: give another scale"):
        last(studio.drawer.draw(session, replace(REQUEST, guidance=1, guidance_base=True)))
    distilled = read_adapter(make_adapter("generation", 7))
    distilled.info.extra = {"training": {"guidance_distillation": 1.5}}
    use(
        studio,
        session,
        write_adapter(distilled.config, distilled.tensors, distilled.info, session.output() / "d.safetensors"),
    )
    assert len(session.own) == 1
    with pytest.raises(InputError, match="is guided already: it needs Guidance 1"):
        last(studio.drawer.draw(session, REQUEST))
    assert len(last(studio.drawer.draw(session, replace(REQUEST, guidance=1)))[1]) == 2
    x, y = parse_axis(session, "guidance", "1"), parse_axis(session, "seed", "3")
    assert [*studio.grid_drawer.draw(session, REQUEST, x, y)][-1].done == 1
    with pytest.raises(InputError, match="is guided already"):
        last(studio.grid_drawer.draw(session, REQUEST, parse_axis(session, "guidance", "1, 2"), y))


def test_a_grid_compares_what_guides(studio, session, adapters):
    use(studio, session, adapters[0])
    x, y = parse_axis(session, "guidance from", ""), parse_axis(session, "guidance", "1, 3")
    assert x.values == ("adapted", "base")
    *states, end = studio.grid_drawer.draw(session, Request(("2",), steps=2), x, y)
    assert end.done == 4 and np.asarray(Image.open(end.archive)).size
    preview = np.asarray(Image.open(states[-1].adapted[0].image)).astype(int)  # three of the cells, and a blank one
    first, second = preview[:32, :32], preview[:32, 34:66]
    assert np.abs(first - second).max() <= 1  # a scale of 1 guides nothing
    with pytest.raises(InputError, match="guidance from: 'bse' is unknown; did you mean 'base'"):
        parse_axis(session, "guidance from", "bse")


def test_users_at_the_same_time_get_the_pictures_they_get_alone(studio, adapters):
    weights = [(1.0, 0.0), (0.0, 1.0), (0.7, 0.3), (-0.5, 1.5)]
    users = []
    for number, pair in enumerate(weights):
        session = studio.session(f"user {number}")
        use(studio, session, *adapters, weights=pair)
        users.append(session)
    alone = [last(studio.drawer.draw(user, REQUEST))[1] for user in users]
    assert len({image.tobytes() for images in alone for image in images}) == 2 * len(users)
    together, start = [[] for _ in users], threading.Barrier(len(users))

    def work(number):
        start.wait()
        for _ in range(2):
            together[number].append(last(studio.drawer.draw(users[number], REQUEST))[1])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(users))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for expected, rounds in zip(alone, together, strict=True):
        assert len(rounds) == 2
        for found in rounds:
            assert all(np.array_equal(a, b) for a, b in zip(expected, found, strict=True))


def test_one_base_in_memory_that_nothing_writes_to(studio, session, adapters):
    info = session.library.entries()[0][0].adapter.info
    base = studio.bases.base(info)
    before = {name: value.clone() for name, value in base.model.state_dict().items()}
    use(studio, session, *adapters, weights=(0.5, 0.25))
    last(studio.drawer.draw(session, REQUEST))
    assert all(torch.equal(value, before[name]) for name, value in base.model.state_dict().items())
    mine = {value.data_ptr() for value in base.model.parameters()}
    view = next(reversed(studio.bases._views.values()))
    shared = [value for name, value in view.model.named_parameters() if value.data_ptr() in mine]
    assert sum(v.numel() for v in shared) > 0.98 * sum(v.numel() for v in base.model.parameters())
    assert len([key for key in studio.bases._bases if key[0] == "generation"]) == 1


def test_a_saved_mix_draws_what_the_sliders_draw(studio, session, adapters):
    use(studio, session, *adapters, weights=(0.7, -0.4))
    mixed = last(studio.drawer.draw(session, REQUEST))[1]
    other = studio.session("opens the mix")
    use(studio, other, studio.save_mix(session, "generation"))
    assert all(np.array_equal(a, b) for a, b in zip(mixed, last(studio.drawer.draw(other, REQUEST))[1], strict=True))


def test_weight_zero_is_the_base_and_opposite_weights_keep_the_first_ones_classes(studio, session, adapters):
    use(studio, session, *adapters, weights=(0.0, 0.0))
    base, adapted = last(studio.drawer.draw(session, REQUEST))
    assert all(np.array_equal(a, b) for a, b in zip(base, adapted, strict=True))
    for name, weight in zip(session.own, (1.0, -1.0)):
        session.set(name, True, weight)
    base, adapted = last(studio.drawer.draw(session, REQUEST))
    assert not np.array_equal(base[0], adapted[0])


def test_methods_without_sums_say_so(studio, session, make_adapter, adapters):
    dora = make_adapter("generation", 5, "dora")
    use(studio, session, dora, weights=(0.5,))
    with pytest.raises(InputError, match="DoRA has no weights and no sums; use it alone, at weight 1"):
        last(studio.drawer.draw(session, REQUEST))
    use(studio, session, adapters[0])
    session.set(next(iter(session.own)), True, 1.0)
    with pytest.raises(InputError, match="DoRA has no weights"):
        last(studio.drawer.draw(session, REQUEST))


def test_previews_come_while_drawing_and_whoever_stops_listening_stops_it(studio, session, adapters, monkeypatch):
    use(studio, session, adapters[0])
    steps = []
    monkeypatch.setattr("app.drawing.decode", lambda vae, x: steps.append(1) or torch.zeros(len(x), 3, 32, 32))
    drawing = studio.drawer.draw(session, Request(("1",), steps=40))
    states = [next(drawing) for _ in range(12)]
    assert [state.done for state in states] == list(range(12)) and states[-1].total == 80
    assert states[6].base and not states[6].adapted and len(steps) == 2
    drawing.close()
    assert len(steps) == 2


def test_a_cancelled_drawing_leaves_no_pictures_and_the_next_one_is_whole(studio, session, adapters):
    use(studio, session, adapters[0])
    drawing = studio.drawer.draw(session, Request(("1",), steps=40))
    states = [next(drawing) for _ in range(20)]
    assert states[-1].base and not any(state.archive for state in states)
    session.drawings.cancel()
    (end,) = drawing
    assert end.state is State.CANCELLED and not end.base and not end.adapted and end.archive is None
    *_, end = studio.drawer.draw(session, REQUEST)
    assert end.state is State.FINISHED and len(end.base) == len(end.adapted) == 2 and end.archive.is_file()


def test_a_cancelled_grid_leaves_no_pictures(studio, session, adapters):
    use(studio, session, adapters[0])
    x, y = parse_axis(session, "adapter weight", "0, 1"), parse_axis(session, "seed", "3, 4")
    grid = studio.grid_drawer.draw(session, Request(("2",), steps=2), x, y)
    assert [bool(next(grid).adapted) for _ in range(5)][-1]  # one cell is drawn
    session.grids.cancel()
    (end,) = grid
    assert end.state is State.CANCELLED and not end.adapted and end.archive is None


def another_base(file, place):
    """The same adapter, as if it had been trained on another base."""
    read = read_adapter(file)
    read.info.base_fingerprint = "0" * len(read.info.base_fingerprint)
    return write_adapter(read.config, read.tensors, read.info, place)


def test_a_mix_of_different_bases_is_refused_before_anything_is_drawn(
    studio, session, adapters, tmp_path, monkeypatch
):
    def never(*args, **kwargs):
        raise AssertionError("drawn")

    monkeypatch.setattr("app.drawing.denoise", never)
    foreign = another_base(adapters[1], tmp_path / "foreign.safetensors")
    x, y = parse_axis(session, "guidance", "1, 2"), parse_axis(session, "seed", "3, 4")
    use(studio, session, adapters[0], foreign)
    for drawing in (studio.drawer.draw(session, REQUEST), studio.grid_drawer.draw(session, REQUEST, x, y)):
        states = []
        with pytest.raises(InputError, match="trained on different bases"):
            states.extend(drawing)
        assert session.drawings.state is State.FAILED
    use(studio, studio.session("alone"), foreign)
    with pytest.raises(InputError, match="trained on another base") as caught:
        last(studio.drawer.draw(studio.session("alone"), REQUEST))
    assert "trained on another base than embedded/dit (" in studio.public(str(caught.value))


def test_a_mix_of_different_depth_bases_is_refused_before_anything_is_estimated(
    studio, session, make_adapter, tmp_path, monkeypatch
):
    monkeypatch.setattr("app.depth.estimate_depth", lambda *args: pytest.fail("estimated"))
    files = [make_adapter("depth", seed) for seed in (1, 2)]
    use(studio, session, files[0], another_base(files[1], tmp_path / "foreign.safetensors"))
    with pytest.raises(InputError, match="trained on different bases"):
        studio.depth.estimate(session, studio.depth_example)


def test_a_view_in_memory_is_not_given_to_the_same_adapter_of_another_base(studio, session, make_adapter, tmp_path):
    file = make_adapter("classification", 4)
    use(studio, session, file)
    studio.classifier.classify(session, studio.digit_examples)
    user = studio.session("same values, another base")
    use(studio, user, another_base(file, tmp_path / "foreign.safetensors"))
    with pytest.raises(InputError, match="trained on another base"):
        studio.classifier.classify(user, studio.digit_examples)


def test_views_of_one_mix_are_one_view_that_requests_leave_as_it_is(studio, session, make_adapter):
    use(studio, session, make_adapter("classification", 4), weights=(0.5,))
    mix = session.mix("classification")
    view = studio.bases.view(mix)
    before = dict(vars(view)), {name: value.clone() for name, value in view.model.state_dict().items()}
    studio.classifier.classify(session, studio.digit_examples)
    assert studio.bases.view(mix) is view and vars(view) == before[0]
    assert all(torch.equal(value, before[1][name]) for name, value in view.model.state_dict().items())
    assert studio.bases.view(mix.without_adapters()) is not view and str(mix) == f"0.5 × {next(iter(session.own))}"


def test_a_picture_brings_its_settings_and_adapters_back(studio, session, adapters):
    use(studio, session, *adapters, weights=(0.5, 1.25))
    wanted = Request(("2", "A"), seed=11, num_images=2, sampler="ddim", steps=4, guidance=1.5)
    *_, end = studio.drawer.draw(session, wanted)
    first, second = session.own
    session.set(first, False, 1.0)
    session.set(second, True, -1.0)
    for picture in (end.base[0], end.adapted[3]):
        found = restore(session, picture.image)
        assert found.request == wanted and not found.missing
        assert dict(found.adapters) == {first: 0.5, second: 1.25}
        assert session.enabled == {first, second} and session.weight(first) == 0.5
    again = last(studio.drawer.draw(session, found.request))[1]
    assert np.array_equal(again[3], np.asarray(Image.open(end.adapted[3].image)))
    stranger = studio.session("without these adapters")
    assert restore(stranger, end.adapted[0].image).missing == [first, second]


def test_a_velocity_base_is_drawn_by_samplers_of_its_own(studio, session, make_adapter):
    wanted = Request(("2",), seed=3, steps=2, base="embedded/sit")
    assert studio.base_names("generation") == ["embedded", "embedded/sit"]
    assert studio.drawer.samplers(session) == ["auto", "dpm++", "ddim", "ddpm"]
    assert studio.drawer.samplers(session, "embedded/sit") == ["auto", "heun", "euler", "sde"]
    *_, end = studio.drawer.draw(session, wanted)
    assert restore(session, end.base[0].image).request == replace(wanted, sampler="heun")
    with pytest.raises(InputError, match="'ddim' is not for this base"):
        list(studio.drawer.draw(session, replace(wanted, sampler="ddim")))
    use(studio, session, make_adapter("generation", 1, base="embedded/sit"))
    assert studio.drawer.samplers(session) == ["auto", "heun", "euler", "sde"]
    steps, seeds = (parse_axis(session, name, text) for name, text in (("steps", "1, 2"), ("seed", "3")))
    *_, grid = studio.grid_drawer.draw(session, replace(wanted, base=""), steps, seeds)
    assert restore(session, grid.adapted[0].image).request.sampler == "heun"
    use(studio, session, make_adapter("generation", 1))
    assert studio.drawer.samplers(session) == ["auto", "dpm++", "ddim", "ddpm"]
    with pytest.raises(InputError, match="trained on another base"):
        list(studio.drawer.draw(session, wanted))


@pytest.mark.parametrize(
    ("notes", "message"),
    [
        ({}, "does not say how it was generated"),
        ({"onelora.settings": "{"}, "damaged"),
        ({"onelora.settings": "[]"}, "damaged"),
        ({"onelora.settings": '{"steps": 5, "sampler": "dimm", "guidance_scale": 1}', "onelora.class": "1"}, "'ddim'"),
        ({"onelora.settings": '{"steps": 1e9, "sampler": "ddim", "guidance_scale": 1, "classes": ["1"], "seed": 0}'}, "at most 1000"),
    ],
)  # fmt: skip
def test_foreign_pictures_restore_nothing(studio, session, tmp_path, notes, message):
    from PIL.PngImagePlugin import PngInfo

    text = PngInfo()
    for key, value in notes.items():
        text.add_itxt(key, value)
    Image.new("RGB", (8, 8)).save(tmp_path / "p.png", pnginfo=text)
    with pytest.raises(InputError, match=message):
        restore(session, tmp_path / "p.png")
    (tmp_path / "q.png").write_bytes(b"\x89PNG no picture")
    with pytest.raises(InputError, match="cannot be read as a PNG"):
        restore(session, tmp_path / "q.png")


def test_a_grid_draws_each_pair_of_values(studio, session, adapters):
    use(studio, session, adapters[0])
    x, y = parse_axis(session, "adapter weight", "0, 1"), parse_axis(session, "seed", "3, 4, 5")
    *states, end = studio.grid_drawer.draw(session, Request(("2",), steps=2), x, y)
    assert [state.done for state in states] == sorted(state.done for state in states)
    assert {state.done for state in states} == set(range(6)) and end.done == end.total == 6
    assert restore(session, end.archive).request == Request(("2",), steps=2, sampler="dpm++")
    adapter_axis = parse_axis(session, "adapter", "")
    assert adapter_axis.values[0] == "base" and next(iter(session.own)) in adapter_axis.values
    grid = studio.grid_drawer.draw(
        session, Request(("2",), steps=2), adapter_axis, parse_axis(session, "guidance", "1")
    )
    assert [*grid][-1].done == len(adapter_axis.values)


@pytest.mark.parametrize(
    ("axis", "text", "message"),
    [
        ("wieght", "1", "'adapter weight'|known axes"),
        ("steps", "1, two", "whole numbers"),
        ("seed", "", "write its values"),
        ("adapter", "nobody", "no adapter 'nobody'"),
    ],
)
def test_bad_axes_are_named(session, axis, text, message):
    with pytest.raises(InputError, match=message):
        parse_axis(session, axis, text)


def test_grids_that_make_no_sense_are_refused(studio, session):
    seeds, many = parse_axis(session, "seed", "1"), parse_axis(session, "steps", ",".join("1" * 40))
    with pytest.raises(InputError, match="two different"):
        last(studio.grid_drawer.draw(session, REQUEST, seeds, seeds))
    with pytest.raises(InputError, match="40 cells"):
        last(studio.grid_drawer.draw(session, REQUEST, seeds, many))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"classes": ()}, "at least one class"),
        ({"num_images": 65}, "65 images"),
        ({"seed": -1}, "seed -1"),
        ({"steps": 5000}, "5000 steps"),
        ({"guidance": float("nan")}, "guidance nan"),
    ],
)
def test_impossible_requests_are_refused(fields, message):
    with pytest.raises(InputError, match=message):
        Request(**{"classes": ("1",), **fields})


def test_an_unknown_class_and_another_base_are_named(studio, session, adapters, make_adapter, dit_folder):
    use(studio, session, adapters[0])
    with pytest.raises(InputError, match="no class 'pie'"):
        last(studio.drawer.draw(session, Request(("pie",))))
    for base in ("/etc", "../shared", "somewhere"):
        with pytest.raises(InputError, match="is not one of this app's"):
            last(studio.drawer.draw(session, Request(("1",), base=base)))
    other = Studio(bases={"tiny": dit_folder}, root=studio.root / "other")
    user = other.session("u")
    use(other, user, adapters[0])
    with pytest.raises(InputError, match="trained on another base"):
        last(other.drawer.draw(user, Request(("1",), base="tiny")))
    user.enabled.clear()
    assert len(last(other.drawer.draw(user, Request(("thing 7",), base="tiny", steps=2)))[0]) == 1


def test_depth_is_the_librarys_and_the_base_keeps_its_own_range(studio, session, make_adapter):
    file = make_adapter("depth", 3)
    alone = studio.depth.estimate(session, studio.depth_example)
    assert alone.adapted is None and alone.difference is None and "median" in alone.text
    use(studio, session, file)
    maps = studio.depth.estimate(session, studio.depth_example)
    expected = load_adapted(file)(read_image(studio.depth_example))
    stored = np.asarray(Image.open(maps.millimetres), dtype=np.int64)
    assert np.array_equal(stored, (expected * 1000 + 0.5).astype(np.uint16))
    assert all(path.is_file() for path in (maps.base, maps.adapted, maps.difference, maps.plain_base))
    session.enabled.clear()
    assert studio.depth.estimate(session, studio.depth_example).text == alone.text
    with pytest.raises(InputError, match="choose a picture"):
        studio.depth.estimate(session, None)


def test_bases_of_other_settings_share_what_is_equal(studio, session, make_adapter):
    use(studio, session, make_adapter("depth", 3))
    studio.depth.estimate(session, studio.depth_example)
    session.enabled.clear()
    studio.depth.estimate(session, studio.depth_example)
    models = [base.model for key, base in studio.bases._bases.items() if key[0] == "depth"]
    places = [{name: value.data_ptr() for name, value in model.named_parameters()} for model in models]
    assert len(places) >= 2
    assert {name for name in places[0] if places[0][name] != places[1][name]} == {"head.conv3.bias"}


def test_answers_are_those_of_the_base_and_of_each_adapter(studio, session, make_adapter):
    files = [make_adapter("classification", seed) for seed in (1, 2)]
    use(studio, session, *files)
    pictures = studio.digit_examples
    rows = studio.classifier.classify(session, pictures)
    assert len(rows) == 3 and [len(answer.classes) for answer in rows[0]] == [5, 3, 3]
    for number, file in enumerate(files, start=1):
        expected = load_adapted(file).classify([read_image(path) for path in pictures])
        assert [row[number].classes for row in rows] == expected
    assert {name for name, _ in rows[0][1].classes} == {"1", "2", "A"}
    with pytest.raises(InputError, match="choose a picture"):
        studio.classifier.classify(session, [])


def test_of_a_very_long_picture_the_middle_is_classified(studio, session, tmp_path, caplog):
    Image.new("RGB", (4000, 20), "white").save(tmp_path / "long.png")
    assert len(studio.classifier.classify(session, [tmp_path / "long.png"])) == 1
    assert "of 4000x20 pixels only the middle 160 are used" in caplog.text


def test_details_come_with_a_plot(studio, session, adapters):
    use(studio, session, adapters[0])
    facts, plot = studio.details(session, next(iter(session.own)))
    assert facts["method"] == "onelora" and plot.stat().st_size > 1000
    with pytest.raises(InputError, match="no adapter 'nobody'"):
        studio.details(session, "nobody")


def test_the_shipped_adapters_are_there_and_sound(studio):
    entries, problems = studio.library.entries()
    assert not problems
    assert {entry.adapter.info.task for entry in entries} == {"generation", "depth", "classification"}
    user = studio.session("new here")
    assert user.enabled == {entry.name for entry in entries}
    assert len(last(studio.drawer.draw(user, Request(("3",), steps=1)))[1]) == 1
    assert studio.depth.estimate(user, studio.depth_example).adapted
    assert len(studio.classifier.classify(user, studio.digit_examples[:1])[0]) == 2


def test_an_answer_for_a_picture_that_was_replaced_meanwhile_changes_nothing(studio):
    request, session = SimpleNamespace(session_hash="late"), studio.session("late")

    @for_this_picture(studio, "depth", 2)
    def answer(path, newest, request):
        session.pictures["depth"] = newest
        return "text", "map"

    assert answer("a.png", "a.png", request) == ("text", "map")
    assert answer("a.png", "b.png", request) == [gr.skip(), gr.skip()]
    session.pictures.clear()  # an example's picture has no path yet
    assert session.asked_about == {"depth": "a.png"}


def test_an_estimate_of_a_picture_that_was_replaced_is_not_drawn_again(studio):
    session = studio.session("replaced")
    studio.depth.estimate(session, studio.depth_example)
    with pytest.raises(InputError, match="choose a picture"):
        studio.depth.draw_again(session, None, Look("magma"))
