"""What progress bars leave in a log, on a clock of their own."""

import os
import subprocess
import sys

import pytest
import tqdm.std

from onelora_vision.runtime.progress import progress, progress_bar

SECONDS_PER_STEP = 0.15


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass only when a test says so; no thread looks at bars meanwhile."""
    now = [1000.0]
    monkeypatch.setattr(tqdm.std, "time", lambda: now[0])
    monkeypatch.setattr(tqdm.std.tqdm, "monitor_interval", 0)
    return now


def train(clock, steps=10_000, **options):
    with progress_bar(steps, desc="training", unit="step", **options) as bar:
        for step in range(steps):
            clock[0] += SECONDS_PER_STEP
            bar.set_postfix({"loss": f"{1 / (step + 1):.4g}"}, refresh=False)
            bar.update()


def test_a_long_log_is_a_line_every_half_minute(clock, capsys):
    train(clock)
    text = capsys.readouterr().err
    lines = text.splitlines()
    assert "\r" not in text and len(text) < 100_000
    assert 40 <= len(lines) <= 10_000 * SECONDS_PER_STEP / 30 + 1
    assert lines[0].startswith("training: ") and "/10000 steps, " in lines[0] and "loss=" in lines[0]
    assert " left" in lines[0] and not any(line == "" for line in lines)


def test_what_is_done_within_half_a_minute_leaves_nothing(clock, capsys):
    train(clock, steps=100)
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar(clock, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    train(clock, steps=100)
    text = capsys.readouterr().err
    assert "\r" in text and "100/100" in text


def test_hidden_bars_and_tqdm_disable_print_nothing(clock, capsys):
    train(clock, hidden=True)
    assert capsys.readouterr().err == ""
    code = "from onelora_vision.runtime.progress import progress_bar; print(progress_bar(3).disable)"
    for value, disabled in (("1", "True"), ("", "False")):
        environment = {**os.environ, "TQDM_DISABLE": value}
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
        assert done.stdout.strip() == disabled


def test_items_pass_through(clock, capsys):
    assert list(progress("abc", 3, desc="reading")) == list("abc")


def test_a_total_that_nobody_knows(clock, capsys):
    with progress_bar(None, desc="measuring", unit="step") as bar:
        for _ in range(10):
            clock[0] += 20
            bar.update()
    text = capsys.readouterr().err
    assert text.startswith("measuring: ") and "steps" in text
