"""Details of an adapter: everything in its file, and the norms of its layers."""

import html
import json

import gradio as gr

from onelora_vision.errors import one_line

from ..studio import Studio
from .adapters import AdapterPanel
from .common import QUICK, hint, toasts

START = hint("Choose an adapter here, or press Details beside one.")


def build_details(studio: Studio, panel: AdapterPanel, page: gr.Blocks, tab: gr.Tab) -> gr.Dropdown:
    """Lay the tab out and connect it; returns the widget that chooses the adapter."""
    name = gr.Dropdown([], label="Adapter", allow_custom_value=True, elem_id="details-name")
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            facts = gr.HTML(START, elem_id="details-facts")
        with gr.Column(scale=1, min_width=280):
            norms = gr.HTML(elem_id="norms")

    @toasts(studio, "No details")
    def show(chosen: str | None, request: gr.Request):
        if not chosen:
            return START, ""
        said = studio.facts(studio.session(request.session_hash), chosen)
        return _facts(said), _norms(said["rows"])

    def names(current: str | None, request: gr.Request):
        known = [row["name"] for row in studio.rows(studio.session(request.session_hash))]
        return gr.update(choices=known, value=current if current in known else None)

    def first(current: str | None, request: gr.Request):
        rows = studio.rows(studio.session(request.session_hash))
        return current or (rows[0]["name"] if rows else None)

    tab.select(first, name, name, api_visibility="private", **QUICK)
    name.change(show, name, [facts, norms], api_visibility="private", show_progress="minimal")
    gr.on([page.load, panel.version.change], names, name, name, api_visibility="private", **QUICK)
    return name


def _facts(said: dict) -> str:
    sections = [_table("File", {key: said[key] for key in _PLAIN if said.get(key) not in (None, "", [])})]
    if said["metrics"].get("after"):
        before, after = said["metrics"].get("before", {}), said["metrics"]["after"]
        figures = {key: f"{_number(before.get(key))} → {_number(value)}" for key, value in after.items()}
        sections.append(_table("Figures, before → after", figures))
    sections.append(_table("Settings", {key: value for key, value in said["extra"].items() if value is not None}))
    sections.append(_table("Written by", said["versions"]))
    return "".join(sections)


_PLAIN = ("task", "method", "peft_type", "compression", "base", "base_fingerprint", "layers", "layer_values",
          "whole_values", "values", "file_bytes", "classes", "null_class", "protocol")  # fmt: skip


def _norms(rows: list[dict]) -> str:
    """A bar per adapted layer and part, in the colours of the page; long lists scroll."""
    if not rows:
        return hint("No layer has an adapter: what this file changes was trained whole.")
    most = max(row["norm"] or 0.0 for row in rows) or 1.0
    has_parts = len({row["part"] for row in rows}) > 1
    lines = [
        f'<li><span class="layer">{html.escape(row["layer"])}{html.escape(" · " + row["part"]) if has_parts else ""}</span>'
        f'<span class="bar"><i style="width:{100 * (row["norm"] or 0.0) / most:.1f}%"></i></span>'
        f'<span class="share">{_number(row["norm"])}</span></li>'
        for row in rows
    ]
    title = "Norms per layer (of gamma: of gamma − 1)"
    return f'<section class="details norms"><h3>{title}</h3><ol tabindex="0">{"".join(lines)}</ol></section>'


def _number(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, (int, float)) else "–"


def _table(title: str, rows: dict) -> str:
    cells = "".join(
        f"<tr><th>{html.escape(str(key).replace('_', ' '))}</th><td>{html.escape(_value(value))}</td></tr>"
        for key, value in rows.items()
    )
    return f'<section class="details"><h3>{html.escape(title)}</h3><table>{cells}</table></section>' if rows else ""


def _value(value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return ", ".join(value[:40]) + (f" … ({len(value)})" if len(value) > 40 else "")
    return value if isinstance(value, str) else one_line(json.dumps(value), 400)
