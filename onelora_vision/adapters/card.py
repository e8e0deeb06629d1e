"""The model card of an adapter folder."""

import json
import re
from collections.abc import Collection
from urllib.parse import quote

import yaml

from onelora_vision.adapters.kinds import KINDS, Kind
from onelora_vision.backbones.table import TASKS
from onelora_vision.errors import listed, one_line

_MARKUP = re.compile(r"[\\`*\[\]<>|~&]|(?<!\w)_|_(?!\w)")  # inside of words "_" is no markup

_OWN = """\
from onelora_vision import load_adapted

adapted = load_adapted("{{folder}}")  # finds the base by its id; base="…" gives another place
{use}"""
_PEFT = """\
import onelora_vision  # registers the method in PEFT
from peft import PeftModel

model = PeftModel.from_pretrained(base_model, "{folder}")"""
_FOLDER = "path/to/this/folder"
_PEFT_LORA = """\
model = PeftModel.from_pretrained(base_model, "lora")  # onelora export {folder} --to peft-lora -o lora"""


def card(info, config: dict, values: int, size: int, pictures: Collection[str] = ()) -> str:
    """Markdown for an adapter: what it is, how to load it, what was measured. ``info`` is its `AdapterInfo`."""
    name = str(config.get("peft_type"))
    kind = KINDS.get(name, Kind(name, name, {}))
    about = (
        f"A {_text(info.task or 'fine-tuning')} adapter of {values:,} values ({size:,} bytes), method **{_text(info.method)}** "
        f"(`peft_type` {kind.name}), made with onelora_vision."
    )
    parts = [
        _front_matter(info),
        f"# {_text(info.method)} adapter for {_text(info.base or 'an unnamed base')}",
        about + (f" Trained on {_text(info.data)}." if info.data else ""),
        _blend(info),
        _use(info, kind),
        _classes(info),
        _metrics(info),
        "\n\n".join(f"![{_text(name)}]({quote(name)})" for name in pictures),
        _provenance(info),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _front_matter(info) -> str:
    fields = {
        "library_name": "peft",
        "base_model": info.base,
        "license": info.license or "other",
        "tags": ["onelora_vision", info.method],
    }
    return f"---\n{yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)}---"


def _use(info, kind: Kind) -> str:
    """How to load it here, and in each ecosystem that does not know this package."""
    example = info.class_names[0] if info.class_names else ""
    names = {"folder": _FOLDER, "example": _literal(example), "base": _literal(info.base)}
    warning = "Without `import onelora_vision`, PEFT does not know the method and stops with `KeyError`.\n\n"
    exported = info.extra.get("exported")
    if exported:
        loading = _code(_PEFT_LORA.partition("#")[0], names)
        return f"## Use\n\nA plain {kind.title} for the base as its own library loads it:\n\n{loading}"
    with_peft = f"{warning if kind.is_ours else ''}{_code(_PEFT, names)}"
    if info.task not in TASKS:
        return f"## Use\n\n{with_peft}"
    own = _code(_OWN.format(use=TASKS[info.task].use), names)
    return "\n\n".join([f"## Use\n\n{own}", f"With PEFT alone:\n\n{with_peft}", _elsewhere(info, names)])


def _elsewhere(info, names: dict) -> str:
    lines = ["## Without onelora_vision", "PEFT:", _code(_PEFT_LORA, names)]
    task = TASKS[info.task]
    if task.diffusers:
        lines += ["diffusers:", _code(task.diffusers, names)]
        lines.append(f"ComfyUI: `onelora export {_FOLDER} --to comfy -o lora` writes `lora/lora.safetensors`.")
    merged = f"{task.merged}  # onelora export {{folder}} --to merged -o merged"
    return "\n\n".join([*lines, "Merged, no adapter library at all:", _code(merged, names)])


def _code(text: str, names: dict) -> str:
    return f"```python\n{text.strip().format(**names)}\n```"


def _blend(info) -> str:
    recipe = info.extra.get("blend")
    if not isinstance(recipe, list) or not all(isinstance(term, dict) for term in recipe):
        return ""
    signs = [
        ("−" if weight < 0 else "+", abs(weight), _text(term.get("adapter", "")))
        for term in recipe
        if _is_number(weight := term.get("weight"))
    ]
    text = " ".join(f"{sign} {weight:g} × {name}" for sign, weight, name in signs).removeprefix("+ ")
    return f"A weighted sum of adapters: {text}."


def _classes(info) -> str:
    if not info.class_names:
        return ""
    return f"## Classes\n\n{len(info.class_names)}: {_text(listed(info.class_names, 20), 3000)}"


def _metrics(info) -> str:
    before, after = info.metrics.get("before", {}), info.metrics.get("after", {})
    rows = [
        f"| {_text(name)} | {_number(before.get(name))} | {_number(after.get(name))} |"
        for name in dict.fromkeys([*before, *after])
        if _is_number(after.get(name, before.get(name)))
    ]
    if not rows:
        return ""
    table = "\n".join(["| | before | after |", "|---|---|---|", *rows])
    return f"## Measured\n\n{table}" + (f"\n\nProtocol: {_text(info.protocol)}" if info.protocol else "")


def _provenance(info) -> str:
    versions = listed((f"{name} {version}" for name, version in info.versions.items()), 20)
    lines = [f"- base: {_span(info.base)}", f"- base fingerprint: {_span(info.base_fingerprint)}"]
    if versions:
        lines.append(f"- written with {_text(versions)}")
    return "## Provenance\n\n" + "\n".join(lines)


def _number(value) -> str:
    return f"{value:.4g}" if _is_number(value) else ""


def _is_number(value) -> bool:
    return isinstance(value, int | float) and abs(value) < 1e300


def _text(text: object, limit: int = 1000) -> str:
    """Text of an adapter's file as Markdown that shows it and does nothing else: no markup, no HTML, one line."""
    return _MARKUP.sub(r"\\\g<0>", one_line(text, limit) if str(text) else "")


def _span(text: str) -> str:
    """Text as code; no run of backticks in it closes the span."""
    text = one_line(text, 1000) if text else ""
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence} {text} {fence}" if "`" in text else f"`{text}`"


def _literal(text: str) -> str:
    """Text as a string of Python."""
    return json.dumps(one_line(text, 1000) if text else "", ensure_ascii=False)
