"""The page in a real browser, from adapters to pictures, with the embedded bases."""

import csv
import io
import json
import os
import re
import zipfile

import numpy as np
import pytest
from PIL import Image

from onelora_vision.adapters.file import read_adapter
from onelora_vision.data.images import read_image
from onelora_vision.embedded import ADAPTERS
from onelora_vision.inference.loading import load_adapted

try:
    from playwright.sync_api import expect
except ImportError:  # the browser's fixture says so
    expect = None

WAIT = int(os.environ.get("ONELORA_PAGE_WAIT", 300_000))


@pytest.fixture(scope="module")
def context(browser):
    """A browser's window: what it has fetched of the page for one test, the next need not fetch again."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, accept_downloads=True)
    yield context
    context.close()


@pytest.fixture
def page(address, context):
    """A user who has just opened the page."""
    page = context.new_page()
    page.set_default_timeout(WAIT)
    expect.set_options(timeout=WAIT)
    page.goto(address)
    expect(page.get_by_label("range slider for Weight of handwriting-dit")).to_be_visible()
    expect(page.locator("#classes")).to_contain_text("Mix:")
    yield page
    page.evaluate("localStorage.clear()")  # the next user has no settings
    page.close()


def add(page, *files):
    page.locator("#upload input[type=file]").set_input_files([str(file) for file in files])


def only(page, file, other):
    """Upload an adapter and enable it in the place of ``other``."""
    add(page, file)
    page.get_by_role("checkbox", name=file.stem).check()  # when the list has been laid out anew
    page.get_by_role("checkbox", name=other).uncheck()


def draw(page, steps=2, images=1):
    """Draw, and wait for the end."""
    page.get_by_label("number input for Steps").fill(str(steps))
    page.get_by_label("number input for Images of each class").fill(str(images))
    page.locator("#guidance").or_(page.get_by_label("number input for Guidance")).first.press("Tab")
    page.locator("#draw").click()
    expect(page.locator("#draw-progress")).to_contain_text(re.compile(rf"Drawn: \d+ images, {steps} steps"))


def pictures(page, gallery, inside=".grid-container"):
    """Pixels of a gallery's pictures, as the server sends them."""
    found = page.locator(f"{gallery} {inside} img")
    expect(found.first).to_be_visible()
    return [_pixels(page, found.nth(number).get_attribute("src")) for number in range(found.count())]


def _pixels(page, address):
    return np.asarray(Image.open(io.BytesIO(page.request.get(address).body())))


def toast(page):
    return page.locator(".toast-body").last


def test_each_tab_opens_with_an_example(page):
    expect(page.locator("#draw-progress")).to_contain_text("An example")
    base, adapted = pictures(page, "#of-base"), pictures(page, "#of-mix")
    assert len(base) == len(adapted) == 8 and not np.array_equal(base[0], adapted[0])
    assert not np.array_equal(*pictures(page, "#draw-compare", ""))
    real = page.locator("#real")
    expect(real).to_contain_text("Real handwriting, of the built-in test images")
    assert len(pictures(page, "#real")) == 8
    expect(page.get_by_label("number input for Guidance")).to_have_value("4")  # as the shipped adapter was evaluated
    page.get_by_role("tab", name="Depth").click()
    expect(page.locator("#depth-said")).to_contain_text("An example")
    for name in ("#depth-picture", "#depth-base", "#depth-adapted", "#depth-difference", "#depth-compare"):
        expect(page.locator(f"{name} img").first).to_be_visible()
    page.get_by_role("tab", name="Classify").click()
    expect(page.locator("#answers .card")).to_have_count(2)
    page.get_by_role("tab", name="Details").click()
    expect(page.locator("#details-facts")).to_contain_text("base fingerprint")


def test_a_changed_strength_is_drawn_at_once(page, monkeypatch):
    monkeypatch.setattr("app.pace.LIVE_SECONDS", 1000.0)
    expect(page.locator("#draw-progress")).to_contain_text("An example")
    page.locator("#strengths-generation").get_by_role("button", name="Base only").click()
    expect(page.locator("#draw-progress")).to_contain_text("0 × handwriting-dit")
    base, adapted = pictures(page, "#of-base"), pictures(page, "#of-mix")
    assert all(np.array_equal(one, other) for one, other in zip(base, adapted, strict=True))
    expect(page.get_by_label("number input for Weight of handwriting-dit")).to_have_value("0")
    slider = page.get_by_label("range slider for Weight of handwriting-dit")
    expect(slider).to_have_value("0")
    place = slider.bounding_box()
    page.mouse.click(place["x"] + 0.75 * place["width"], place["y"] + place["height"] / 2)
    expect(page.locator("#draw-progress")).to_contain_text(re.compile(r"Drawn: .* (0\.9|1|1\.)\d* × handwriting-dit"))
    assert not np.array_equal(pictures(page, "#of-mix")[0], base[0])


def test_what_took_long_is_not_drawn_again_by_itself(page, monkeypatch):
    expect(page.locator("#draw-progress")).to_contain_text("An example")
    monkeypatch.setattr("app.pace.LIVE_SECONDS", 0.0)
    draw(page)
    page.locator("#strengths-generation").get_by_role("button", name="Half").click()
    expect(page.locator("#classes")).to_contain_text("Mix: 0.5 × handwriting-dit")
    page.get_by_role("tab", name="Depth").click()
    expect(page.locator("#depth-said")).to_contain_text("An example")
    page.get_by_role("tab", name="Generate").click()
    expect(page.locator("#draw-progress")).to_contain_text("1 × handwriting-dit")


def test_load_an_adapter_weigh_it_draw_and_save_the_mix(page, make_adapter, tmp_path):
    only(page, make_adapter("generation", 21), "handwriting-dit")
    slider = page.get_by_label("range slider for Weight of generation-onelora-21")
    slider.focus()
    for _ in range(4):
        slider.press("ArrowLeft")  # the keyboard alone will do
    expect(page.locator("#classes")).to_contain_text("Mix: 0.8 × generation-onelora-21")
    draw(page)
    base, adapted = pictures(page, "#of-base"), pictures(page, "#of-mix")
    # of the classes 0 to 3, chosen at first, the adapter knows two
    assert len(base) == len(adapted) == 2 and not np.array_equal(base[0], adapted[0])
    with page.expect_download() as download:
        page.locator("#download-all").click()
    assert download.value.suggested_filename == "images.zip"
    page.get_by_role("button", name="Save this mix").click()
    with page.expect_download() as download:
        page.locator("#mix-file a[download]").first.click()
    place = tmp_path / "mix.safetensors"
    download.value.save_as(place)
    assert read_adapter(place).info.extra["blend"] == [
        {"adapter": "generation-onelora-21", "weight": 0.8, "method": "onelora"}
    ]


def test_a_picture_restores_its_settings(page, tmp_path):
    page.locator("#seed input").fill("77")
    draw(page, steps=3)
    source = page.locator("#of-mix .grid-container img").first.get_attribute("src")
    (tmp_path / "p.png").write_bytes(page.request.get(source).body())
    page.locator("#seed input").fill("5")
    page.get_by_label("number input for Steps").fill("9")
    page.get_by_role("checkbox", name="handwriting-dit").uncheck()
    expect(page.locator("#classes")).to_contain_text("No adapter is enabled")
    page.get_by_role("button", name="Settings from a picture").click()
    page.locator("#restore-file input[type=file]").set_input_files(str(tmp_path / "p.png"))
    expect(toast(page)).to_contain_text("Settings and adapters are those of the picture")
    expect(page.locator("#seed input")).to_have_value("77")
    expect(page.get_by_label("number input for Steps")).to_have_value("3")
    expect(page.get_by_role("checkbox", name="handwriting-dit")).to_be_checked()
    expect(page.locator("#classes")).to_contain_text("Mix: 1 × handwriting-dit")


def test_a_bad_file_is_a_toast_leaves_the_list_and_lets_good_ones_in(page, make_adapter, tmp_path):
    (tmp_path / "x.safetensors").write_bytes(b"\x80\x04 a pickle")
    (tmp_path / "x.txt").write_text("hello")
    add(page, tmp_path / "x.safetensors", tmp_path / "x.txt")
    expect(page.locator(".toast-body").first).to_contain_text("x.safetensors: not a whole safetensors file")
    expect(page.locator(".toast-body").first).to_contain_text("x.txt: not an adapter")
    expect(page.locator(".toast-body").first).to_contain_text("Not added")
    assert not re.search(r"\bError\b", page.locator("body").inner_text())
    add(page, make_adapter("generation", 31))
    expect(page.get_by_role("checkbox", name="generation-onelora-31")).to_be_visible()
    page.locator("#hub input, #hub textarea").first.fill("some/adapter")
    page.get_by_role("button", name="Fetch").click()
    expect(page.locator(".toast-body", has_text="some/adapter: could not be fetched from the hub")).to_be_visible()
    draw(page)
    assert len(pictures(page, "#of-mix")) == 4


def test_a_click_counts_while_the_list_is_drawn_anew(page, make_adapter):
    def is_click(request):  # the page's own events, which may be late, send values or data of the event
        if "queue/join" not in request.url:
            return False
        sent = json.loads(request.post_data)
        return not sent["data"] and "event_data" not in sent

    def event_of_a_click():
        with page.expect_request(is_click) as sent:
            row = page.locator(".adapter", has=page.get_by_role("checkbox", name="handwriting-dit"))
            row.get_by_role("button", name="Details").click()
        return json.loads(sent.value.post_data)["fn_index"]

    before = event_of_a_click()
    add(page, make_adapter("generation", 41))
    expect(page.get_by_role("checkbox", name="generation-onelora-41")).to_be_visible()
    assert event_of_a_click() == before


def test_a_strip_of_strengths_is_one_click_for_depth_and_classes_too(page):
    strip = page.get_by_role("button", name="Strip −1 … 1.5")
    expect(strip).to_have_count(3)
    page.get_by_role("tab", name="Classify").click()
    expect(page.locator("#answers .card")).to_have_count(2)  # a strip needs a picture
    page.get_by_role("tab", name="Depth").click()
    expect(page.locator("#depth-said")).to_contain_text("An example")
    page.get_by_role("tab", name="Generate").click()
    page.get_by_role("checkbox", name="handwriting-vit").uncheck()
    strip.nth(1).click()
    expect(page.get_by_role("tab", name="Classify")).to_have_attribute("aria-selected", "true")
    expect(page.locator("#class-strip .card")).to_have_count(6)
    expect(page.locator("#class-strip .card").first).to_contain_text("strength −1")
    expect(page.get_by_role("checkbox", name="handwriting-vit")).not_to_be_checked()
    strip.nth(2).click()
    expect(page.get_by_role("tab", name="Depth")).to_have_attribute("aria-selected", "true")
    expect(page.locator("#depth-strip img")).to_be_visible()
    page.locator("#estimate").click()
    expect(page.locator("#depth-strip img")).to_be_hidden()
    page.get_by_role("tab", name="Generate").click()
    expect(page.locator("#draw-strip img")).to_have_count(0)


def test_what_was_known_of_a_picture_goes_with_it(page, tmp_path):
    Image.new("RGB", (40, 30), "gray").save(tmp_path / "view.png")
    for tab, picture, answer, gone in (
        ("Depth", "#depth-picture", "#depth-said", "#depth-base img"),
        ("Classify", "#class-picture", "#answers", "#answers .card"),
    ):
        page.get_by_role("tab", name=tab).click()
        expect(page.locator(answer)).to_contain_text("An example")
        page.locator(picture).get_by_label("Remove Image").click()
        expect(page.locator(gone)).to_have_count(0)
        page.locator(f"{picture} input[type=file]").set_input_files(str(tmp_path / "view.png"))
        expect(page.locator(f"{picture} img").first).to_be_visible()
        expect(page.locator(answer)).to_contain_text(f"Press {'Estimate' if tab == 'Depth' else tab}")
        expect(page.locator(gone)).to_have_count(0)


def test_depth_in_other_colours_and_of_many_pictures(page, tmp_path):
    page.get_by_role("tab", name="Depth").click()
    expect(page.locator("#depth-said")).to_contain_text("An example")
    (turbo,) = pictures(page, "#depth-base", "")
    shown = page.locator("#depth-base img").first
    before = shown.get_attribute("src")
    page.locator("#depth-colors input").click()
    page.get_by_role("option", name="magma").click()
    expect(shown).not_to_have_attribute("src", before)
    (magma,) = pictures(page, "#depth-base", "")
    assert not np.array_equal(turbo, magma)
    page.get_by_role("button", name="Many pictures").first.click()
    files = [tmp_path / f"view-{number}.png" for number in range(2)]
    for file in files:
        Image.new("RGB", (40, 30), "gray").save(file)
    page.locator("#depth-files input[type=file]").set_input_files([str(file) for file in files])
    expect(page.locator("#depth-files")).to_contain_text(re.compile(r"view-1|1\s*\.png"))
    page.locator("#estimate-all").click()
    expect(page.locator("#depth-batch-said")).to_contain_text("2 pictures.")
    assert len(pictures(page, "#depth-maps")) == 2
    with page.expect_download() as download:
        page.locator("#depth-zip").click()
    assert len(zipfile.ZipFile(download.value.path()).namelist()) == 6


def test_depth_as_points_in_space(page):
    page.get_by_role("tab", name="Depth").click()
    expect(page.locator("#depth-said")).to_contain_text("An example")
    page.get_by_role("button", name="3D points").click()
    page.locator("#depth-points").click()
    expect(page.locator("#depth-model canvas")).to_be_visible()
    with page.expect_download() as download:
        page.locator("#depth-glb").click()
    assert download.value.path().read_bytes().startswith(b"glTF")
    page.locator("#depth-picture").get_by_label("Remove Image").click()
    expect(page.locator("#depth-glb")).to_be_disabled()


def test_a_strip_of_strengths_is_one_click(page):
    page.get_by_label("number input for Steps").fill("2")
    page.get_by_label("number input for Steps").press("Tab")
    page.get_by_role("tab", name="Depth").click()
    page.get_by_role("button", name="Strip −1 … 1.5").first.click()
    expect(page.get_by_role("tab", name="Generate")).to_have_attribute("aria-selected", "true")
    expect(page.locator("#draw-strip img")).to_be_visible()
    expect(page.locator("#draw-strip")).to_contain_text("handwriting-dit at six strengths: 0, 1, 2, 3 with seed 0")
    expect(page.locator("#strip-said")).to_be_hidden()
    page.locator("#classes").get_by_role("button", name="Clear").click()
    page.get_by_role("button", name="Base only").first.click()
    expect(page.locator("#classes")).to_contain_text("Mix: 0 × handwriting-dit")
    expect(page.locator("#classes")).not_to_contain_text("1")  # nobody has chosen any class


def test_cards_have_pictures_and_words_and_are_filtered(page):
    cards = page.locator(".adapter")
    expect(cards).to_have_count(3)
    expect(page.locator(".adapter .thumbnail")).to_have_count(3)
    expect(cards.first).to_contain_text("distance to the real images")
    page.locator("#panel-search textarea, #panel-search input").first.fill("STREETS")
    expect(cards).to_have_count(1)
    page.locator("#panel-search textarea, #panel-search input").first.fill("nothing of that kind")
    expect(page.locator("#panel")).to_contain_text("No adapter is like that")
    page.locator("#panel-search textarea, #panel-search input").first.fill("")
    page.locator("#panel-task input").click()
    page.get_by_role("option", name="Of the open tab").click()
    expect(cards).to_have_count(1)
    page.get_by_role("tab", name="Classify").click()
    expect(cards.first).to_contain_text("right answers")
    page.get_by_role("tab", name="Train").click()
    expect(cards).to_have_count(3)


def keep_steps(page, steps):
    """Enter the ``steps`` of a training until another page of the same browser opens with them."""
    for _ in range(20):
        page.bring_to_front()  # a page in the background draws nothing, and keeps nothing before it is drawn
        page.locator("#train-steps input").fill(steps)
        page.locator("#train-steps input").press("Tab")
        page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
        other = page.context.new_page()
        other.goto(page.url)
        expect(other.locator("#classes")).to_contain_text("Mix:")  # the kept settings have come before
        other.get_by_role("tab", name="Train").click()
        found = other.locator("#train-steps input").input_value()
        other.close()
        if found == steps:
            return
    raise AssertionError(f"{found} steps are kept, not {steps}")


def test_settings_survive_a_reload_and_others_guidance_does_not(page):
    page.get_by_label("number input for Steps").fill("7")
    page.get_by_label("number input for Guidance").fill("3")
    page.locator("#seed input").fill("77")
    page.locator("#seed input").press("Tab")
    page.get_by_role("tab", name="Depth").click()
    expect(page.locator("#depth-said")).to_contain_text("An example")
    shown = page.locator("#depth-base img").first
    turbo = shown.get_attribute("src")
    page.locator("#depth-colors input").click()
    page.get_by_role("option", name="magma").click()
    expect(shown).not_to_have_attribute("src", turbo)
    (magma,) = pictures(page, "#depth-base", "")
    page.get_by_role("tab", name="Train").click()
    page.locator("#train-kind").get_by_label("Recognise the classes").check()
    expect(page.locator("#train-steps input")).to_have_value("200")
    keep_steps(page, "123")
    page.reload()
    expect(page.get_by_label("number input for Steps")).to_have_value("7")
    expect(page.get_by_label("number input for Guidance")).to_have_value("3")
    expect(page.locator("#seed input")).to_have_value("77")
    expect(page.locator("#classes")).to_contain_text("Mix:")
    page.get_by_role("tab", name="Depth").click()
    expect(page.locator("#depth-said")).to_contain_text("An example")
    (again,) = pictures(page, "#depth-base", "")
    assert np.array_equal(magma, again)
    page.get_by_role("tab", name="Train").click()
    expect(page.locator("#train-steps input")).to_have_value("123")
    page.get_by_role("checkbox", name="handwriting-dit").uncheck()
    page.get_by_role("tab", name="Generate").click()
    expect(page.get_by_label("number input for Guidance")).to_have_value("2.5")
    page.evaluate("localStorage.setItem('onelora-settings', 'no settings')")
    page.reload()
    expect(page.locator("#classes")).to_contain_text("Mix:")
    expect(page.get_by_label("number input for Steps")).to_have_value("20")


def test_a_grid_of_weights_and_seeds(page):
    draw(page)
    page.get_by_role("button", name="X/Y grid").click()
    page.get_by_label("Values across").fill("0, 1")
    page.get_by_label("Values down").fill("1, 2")
    page.locator("#draw-grid").click()
    expect(page.locator("#grid")).to_contain_text("Drawn: 4 cells.")
    expect(page.locator("#grid-picture img")).to_be_visible()


def test_the_history_brings_settings_and_pictures_back_compares_and_says_the_command(page, monkeypatch):
    monkeypatch.setattr("app.pace.LIVE_SECONDS", 0.0)  # nothing but what is asked for is drawn
    draw(page, steps=3)
    page.locator("#strengths-generation").get_by_role("button", name="Half").click()
    expect(page.locator("#classes")).to_contain_text("Mix: 0.5 × handwriting-dit")
    draw(page, steps=2)
    newest = pictures(page, "#of-mix")
    page.get_by_role("button", name="History").click()
    strip = page.locator("#history-strip .thumbnail-item")
    expect(strip.nth(1)).to_be_visible()
    count = strip.count()
    captions = [strip.nth(number).inner_text() for number in range(2)]
    assert captions == ["0.5 × handwriting-dit", "1 × handwriting-dit"]
    strip.nth(1).click()
    expect(page.locator("#classes")).to_contain_text("Mix: 1 × handwriting-dit")
    expect(page.get_by_label("number input for Steps")).to_have_value("3")
    expect(page.locator("#draw-progress")).to_contain_text("From the history")
    expect(page.locator("#history-command textarea")).to_have_value(re.compile(r"^onelora sample .*--steps 3 "))
    strip.nth(0).click()
    expect(page.locator("#history-compare img").first).to_be_visible()
    expect(page.locator("#history-command textarea")).to_have_value(re.compile(r"^onelora blend .*:0.5 -o mix"))
    expect(page.locator("#draw-compare img").first).to_be_visible()
    shown = pictures(page, "#of-mix")
    expect(page.locator("#of-mix .caption-label").first).to_have_text("0 · 0")
    assert all(np.array_equal(one, other) for one, other in zip(newest, shown, strict=True))
    page.locator("#history-star").click()
    expect(strip.nth(0)).to_contain_text("★")
    page.locator("#history-delete").click()
    expect(page.locator("#history-delete")).to_have_text("Delete for good")
    strip.nth(1).click()
    expect(page.locator("#history-delete")).to_have_text("Delete")
    strip.nth(0).click()  # the press before no longer counts
    expect(page.locator("#draw-progress")).to_contain_text("2 steps")
    page.locator("#history-delete").click()
    expect(page.locator("#history-delete")).to_have_text("Delete for good")
    expect(strip).to_have_count(count)
    page.locator("#history-delete").click()
    expect(strip).to_have_count(count - 1)
    page.reload()
    page.get_by_role("button", name="History").click()
    expect(strip).to_have_count(count - 1)


def test_cancel_stops_a_drawing(page):
    draw(page)
    expect(page.locator("#download-all")).to_be_enabled()
    page.get_by_label("number input for Steps").fill("100")
    page.locator("#draw").click()
    expect(page.locator("#of-base .grid-container img").first).to_be_visible()
    expect(page.locator("#draw-progress progress")).to_be_visible()
    expect(page.locator("#download-all")).to_be_disabled()
    page.locator("#cancel").click()
    expect(page.locator("#draw-progress")).to_contain_text("Cancelled.")
    expect(page.locator("#of-base .grid-container img")).to_have_count(0)
    expect(page.locator("#of-mix .grid-container img")).to_have_count(0)
    expect(page.locator("#draw-compare img")).to_have_count(0)
    expect(page.locator("#download-all")).to_be_disabled()
    draw(page)
    shown = [*pictures(page, "#of-base"), *pictures(page, "#of-mix")]
    with page.expect_download() as download:
        page.locator("#download-all").click()
    with zipfile.ZipFile(download.value.path()) as archive:
        kept = [np.asarray(Image.open(archive.open(name))) for name in archive.namelist()]
    assert len(shown) == 8 and all(np.array_equal(one, other) for one, other in zip(shown, kept, strict=True))


def test_draw_right_after_cancel_and_draw_without_cancel_draw_the_newest(page):
    page.get_by_label("number input for Steps").fill("100")
    page.locator("#draw").click()
    expect(page.locator("#draw-progress progress")).to_be_visible()
    page.locator("#cancel").click()
    draw(page)  # at once, and with other settings
    assert len(pictures(page, "#of-mix")) == 4
    page.get_by_label("number input for Steps").fill("100")
    page.locator("#draw").click()
    expect(page.locator("#draw-progress progress")).to_be_visible()
    draw(page, images=2)
    assert len(pictures(page, "#of-mix")) == 8
    assert page.locator(".toast-body").count() == 0


def test_depth_with_a_slider_between_base_and_adapted(page, make_adapter):
    only(page, make_adapter("depth", 4), "streets-depth")
    page.get_by_role("tab", name="Depth").click()
    page.locator("#depth-example").click()
    expect(page.locator("#depth-picture img")).to_be_visible()
    page.locator("#estimate").click()
    expect(page.locator("#depth-said")).to_contain_text(re.compile(r"adapted [\d.]+ to [\d.]+ m"))
    for name in ("#depth-base", "#depth-adapted", "#depth-difference", "#depth-compare"):
        expect(page.locator(f"{name} img").first).to_be_visible()
    with page.expect_download() as download:
        page.locator("#depth-file").click()
    depth = np.asarray(Image.open(download.value.path()))
    assert depth.shape == (192, 192) and depth.dtype in (np.uint16, np.int32) and depth.max() > 1000


def test_pictures_with_16_bits_and_with_transparency_are_decoded_as_on_the_command_line(page, tmp_path):
    y, x = np.mgrid[0:60, 0:100]
    Image.fromarray((x * 500 + y * 200).astype(np.uint16)).save(tmp_path / "grey16.png")
    Image.fromarray(np.stack([x * 2, y * 4, x, y * 4], axis=-1).astype(np.uint8), "RGBA").save(tmp_path / "rgba.png")
    estimator, classifier = (load_adapted(ADAPTERS / name) for name in ("streets-depth", "handwriting-vit"))
    for file in (tmp_path / "grey16.png", tmp_path / "rgba.png"):
        page.get_by_role("tab", name="Depth").click()
        upload(page, "#depth-picture", file)
        page.locator("#estimate").click()
        depth = estimator(read_image(file))
        expect(page.locator("#depth-said")).to_contain_text(f"adapted {depth.min():.2f} to {depth.max():.2f} m")
        with page.expect_download() as download:
            page.locator("#depth-file").click()
        stored = np.asarray(Image.open(download.value.path()), dtype=np.int64)
        assert np.abs(stored - (depth * 1000 + 0.5).astype(np.int64)).max() <= 1
        page.get_by_role("tab", name="Classify").click()
        upload(page, "#class-picture", file)
        page.locator("#classify").click()
        ((best, share), *_) = classifier.classify([read_image(file)])[0]
        card = page.locator("#answers .card").nth(1)
        expect(card.locator("li").first).to_contain_text(re.compile(rf"{best}\s*{100 * share:.1f} %"))


def upload(page, picture, file):
    """Put a picture in the place of the one that is shown."""
    page.locator(picture).get_by_role("button", name="Remove Image").click()
    expect(page.locator(f"{picture} img")).to_have_count(0)
    page.locator(f"{picture} input[type=file]").set_input_files(str(file))
    expect(page.locator(f"{picture} img")).to_be_visible()


def test_classify_one_picture_and_many(page, make_adapter, tmp_path):
    only(page, make_adapter("classification", 4), "handwriting-vit")
    page.get_by_role("tab", name="Classify").click()
    page.locator("#class-example").click()
    expect(page.locator("#class-picture img")).to_be_visible()
    page.locator("#classify").click()
    expect(page.locator("#answers .card")).to_have_count(2)
    expect(page.locator("#answers")).to_contain_text("classification-onelora-4")
    page.get_by_role("button", name="Many pictures").click()
    files = [tmp_path / f"{number}.png" for number in range(3)]
    for file in files:
        Image.new("RGB", (32, 32), "white").save(file)
    page.locator("#class-files input[type=file]").set_input_files([str(file) for file in files])
    expect(page.locator("#class-files")).to_contain_text(re.compile(r"2\s*\.png"))
    page.locator("#classify-all").click()
    expect(page.locator("#class-table")).to_contain_text("classification-onelora-4")
    expect(page.locator("#class-table")).to_contain_text("1.png")
    expect(page.locator("#class-table td img")).to_have_count(3)
    with page.expect_download() as download:
        page.locator("#class-csv").click()
    with open(download.value.path(), newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["picture"] for row in rows} == {"0.png", "1.png", "2.png"}
    assert {row["model"] for row in rows} == {"base", "classification-onelora-4"}


def test_details_and_a_peft_folder(page, make_adapter, tmp_path):
    folder = make_adapter("classification", 9, "onelora_norms", place=tmp_path / "folder")
    add(page, folder / "adapter_config.json", folder / "adapter_model.safetensors")
    expect(page.get_by_role("checkbox", name="adapter", exact=True)).to_be_visible()
    page.get_by_role("button", name="Details").last.click()
    expect(page.get_by_role("tab", name="Details")).to_have_attribute("aria-selected", "true")
    expect(page.locator("#details-facts")).to_contain_text("base fingerprint")
    expect(page.locator("#norms .bar").first).to_be_visible()


@pytest.mark.parametrize("width", [360, 1600])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_cut_off_on_a_telephone_or_a_wide_screen(address, browser, scheme, width):
    context = browser.new_context(viewport={"width": width, "height": 844}, color_scheme=scheme)
    page = context.new_page()
    page.goto(address)
    expect(page.locator("#draw-progress")).to_contain_text("An example", timeout=WAIT)
    weight = page.get_by_label("range slider for Weight of handwriting-dit")
    if width < 760:  # the adapters are folded, and above what they draw
        expect(weight).to_be_hidden()
        page.get_by_role("button", name="Adapters").click()
        assert page.locator("#panel").bounding_box()["y"] < page.locator("#draw").bounding_box()["y"]
    expect(weight).to_be_visible(timeout=WAIT)
    for tab in ("Depth", "Classify", "Train", "Details", "Generate"):
        if not page.get_by_role("tab", name=tab).is_visible():
            page.locator(".overflow-menu > button").click()
            page.locator(".overflow-dropdown").get_by_text(tab).click()
        else:
            page.get_by_role("tab", name=tab).click()
        expect(page.get_by_role("tab", name=tab)).to_have_attribute("aria-selected", "true")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("document.body.classList.contains('dark')") == (scheme == "dark")
    context.close()
