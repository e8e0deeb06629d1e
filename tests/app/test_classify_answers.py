"""Answers of classifiers as HTML and as CSV."""

import csv

from PIL import Image

from app.classify import Answer, write_csv
from app.tabs.answers import cards, table

ROWS = [
    [Answer("base", [("4", 0.6), ("Y", 0.2)]), Answer("<b>mine</b>", [("four, 4", 0.9), ("<i>", 0.1)])],
    [Answer("base", [("2", 0.8), ("Z", 0.1)]), Answer("<b>mine</b>", [("<i>", 0.7), ("four, 4", 0.3)])],
]


def test_many_pictures_have_a_row_each_with_a_thumbnail_and_both_answers(tmp_path):
    files = [tmp_path / "a&b.png", tmp_path / "broken.png"]
    Image.new("RGB", (300, 200), "red").save(files[0])
    files[1].write_bytes(b"no picture")
    page = table(files, ROWS)
    head, first, second = page.split("<tr>")[1:]
    assert "<th>base</th><th>&lt;b&gt;mine&lt;/b&gt;</th>" in head
    assert first.count("<img") == 1 and "data:image/webp" in first and "a&amp;b.png" in first
    assert "<b>4</b>" in first and "60.0 %" in first and "<b>four, 4</b>" in first and "90.0 %" in first
    assert "<img" not in second and "<b>&lt;i&gt;</b>" in second
    assert cards(ROWS[0]).count("<li>") == 4 and "<i>" not in cards(ROWS[1]).replace("<i style", "")


def test_the_csv_has_a_line_per_class(tmp_path):
    with open(write_csv(tmp_path / "answers.csv", ["a, b.png", "c.png"], ROWS), newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 8 and [row["rank"] for row in rows] == ["1", "2"] * 4
    assert rows[2] == {
        "picture": "a, b.png", "model": "<b>mine</b>", "rank": "1", "class": "four, 4", "probability": "0.900000"
    }  # fmt: skip
