"""The model card of an adapter folder."""

import json
import re
from collections.abc import Collection
from pathlib import Path
from urllib.parse import quote

from onelora_vision import embedded
from onelora_vision.adapters.card_metadata import front_matter
from onelora_vision.adapters.kinds import KINDS, Kind
from onelora_vision.backbones.table import TASKS
from onelora_vision.errors import listed, one_line

_MARKUP = re.compile(r"[\\`*\[\]<>|~&]|(?<!\w)_|_(?!\w)")  # inside a word, "_" is not markup

_FOLDER = "path/to/this/folder"
_OWN = """\
from onelora_vision import load_adapted
{setup}
adapted = load_adapted("{folder}")  # finds the base by its id; base="…" gives another place
{use}
model = adapted.base.model  # the PeftModel inside"""
_EXPORT = "onelora export {folder} --to {to} -o {output}"
_PEFT = """\
{imports}
from peft import PeftModel

base = {call}
model = PeftModel.from_pretrained(base, "{folder}")"""
_DIFFUSERS = """\
from diffusers import DiTTransformer2DModel
from diffusers.loaders import PeftAdapterMixin
from safetensors.torch import load_file

DiT = type("DiT", (DiTTransformer2DModel, PeftAdapterMixin), {{}})
model = {call}
model.load_state_dict(load_file("lora/modules.safetensors"), strict=False)  # the label table of the new classes
model.load_lora_adapter("lora", prefix="transformer", weight_name="pytorch_lora_weights.safetensors")"""


def card(info, config: dict, values: int, size: int, pictures: Collection[str] = ()) -> str:
    """The model card in Markdown: what the adapter is, how to load it, its metrics. ``info`` is its `AdapterInfo`."""
    name = str(config.get("peft_type"))
    kind = KINDS.get(name, Kind(name, name, {}))
    about = (
        f"A {_text(info.task or 'fine-tuning')} adapter of {values:,} values ({size:,} bytes), method **{_text(info.method)}** "
        f"(`peft_type` {kind.name}), made with onelora_vision."
    )
    parts = [
        front_matter(info),
        f"# {_text(info.method)} adapter for {_text(info.base or 'an unnamed base')}",
        about + (f" Trained on {_text(info.data)}." if info.data else ""),
        _blend(info),
        _use(info, kind, config),
        _classes(info),
        _metrics(info),
        "\n\n".join(f"![{_text(name)}]({quote(name)})" for name in pictures),
        _training(info),
        _provenance(info),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _use(info, kind: Kind, config: dict) -> str:
    """How to load the adapter with this package, and with each library that works without it."""
    if info.extra.get("exported"):
        loading = _with_peft(info, _FOLDER)
        return f"## Use\n\nA plain {kind.title} for the base as its own library loads it:\n\n{loading}"
    if info.task not in TASKS:
        registers = "import onelora_vision  # registers the method in PEFT\n" * kind.is_ours
        return f"## Use\n\n{_code(registers + loading_code(info))}"
    return "\n\n".join([f"## Use\n\n{_code(loading_code(info))}", *_elsewhere(info, kind, config)])


def loading_code(info, folder: str = _FOLDER) -> str:
    """Python code that loads the adapter in ``folder`` and uses it. For an unknown task, it needs PEFT alone."""
    place = _literal(folder)[1:-1]
    if info.task not in TASKS:
        return f'from peft import PeftModel\n\nmodel = PeftModel.from_pretrained(base, "{place}")'
    task = TASKS[info.task]
    example = _literal(info.class_names[0]) if info.class_names else ""
    setup = f"{task.setup}\n" if task.setup else ""
    return _OWN.format(setup=setup, use=task.use.format(example=example), folder=place)


def _elsewhere(info, kind: Kind, config: dict) -> list[str]:
    """The possible exports, each with the command that writes it and the code that loads it."""
    parts = ["## Without onelora_vision", *_embedded_note(info)]
    if _is_miss(kind, config):
        text = "PEFT, as MiSS of rank 1, which is the same method: one vector per layer."
        parts.append(f"{text}\n\n{_shell('peft-miss', 'miss')}\n\n{_with_peft(info, 'miss')}")
    elif kind.low_rank is None and not kind.is_ours:
        parts.append(f"PEFT, whose {kind.title} it is:\n\n{_with_peft(info, _FOLDER)}")
    else:
        parts.append(f"PEFT:\n\n{_shell('peft-lora', 'lora')}\n\n{_with_peft(info, 'lora')}")
    if kind.low_rank and "diffusers" in TASKS[info.task].exports:
        call = _host_call(info).replace("DiTTransformer2DModel.", "DiT.", 1)
        parts.append(f"diffusers:\n\n{_shell('diffusers', 'lora')}\n\n{_code(_DIFFUSERS.format(call=call))}")
    if kind.low_rank and "comfy" in TASKS[info.task].exports:
        parts.append(f"ComfyUI, as `lora/lora.safetensors`:\n\n{_shell('comfy', 'lora')}")
    merged = TASKS[info.task].merged
    library = info.extra.get("host", {}).get("library")
    loading = merged.get(library, next(iter(merged.values())))
    unless = ""
    if str(info.extra.get("objective", "")).startswith("velocity"):
        unless = " (diffusers loads it, but its `DiTPipeline` cannot sample a network that predicts the velocity)"
    parts.append(
        f"Merged into the weights, without an adapter library{unless}:\n\n{_shell('merged', 'merged')}\n\n{_code(loading)}"
    )
    return parts


def _is_miss(kind: Kind, config: dict) -> bool:
    """Whether the adapter consists of b alone, so PEFT's MiSS can hold it (see `formats.peft_miss`)."""
    others = ("use_bias", "use_scale")
    is_plain = config.get("compression", "sum") == "sum" and not any(config.get(name) for name in others)
    return kind.name == "ONELORA" and is_plain


def _with_peft(info, folder: str) -> str:
    library, name = (info.extra.get("host", {}).get(key, "") for key in ("library", "class"))
    imports = f"from {library} import {name}" if name else f"import {library}" if library else ""
    return _code(_PEFT.format(imports=imports, call=_host_call(info), folder=folder))


def _host_call(info) -> str:
    """The Python expression that loads the base with its own library (see `Base.host_call`)."""
    host = info.extra.get("host")
    if not host:
        return "...  # the base, loaded by its own library"
    name = f"{host['class']}.from_pretrained" if host["class"] else f"{host['library']}.create_model"
    options = {} if host["class"] else {"pretrained": True}
    given = [f"{key}={_literal(value)}" for key, value in {**options, **host["options"]}.items()]
    return f"{name}({', '.join([_literal(host['source']), *given])})"


def _embedded_note(info) -> list[str]:
    """Explain which folder the name of a base that ships with the package stands for."""
    if info.base not in embedded.names_of(info.task):
        return []
    folder = Path(embedded.resolve(info.task, info.base)).relative_to(embedded.FOLDER.parent)
    name, place = f"`{_text(info.base)}`", f"`onelora_vision/{folder.as_posix()}`"
    return [f"{name} is a folder of the package onelora_vision, {place}: put its path in its place below."]


def _shell(to: str, output: str) -> str:
    return f"```bash\n{_EXPORT.format(folder=_FOLDER, to=to, output=output)}\n```"


def _code(text: str) -> str:
    return f"```python\n{text.strip()}\n```"


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
    protocols = {"Protocol": info.protocol, "Retention": info.extra.get("retention")}
    lines = [f"{title}: {_text(text)}" for title, text in protocols.items() if isinstance(text, str) and text]
    return "\n\n".join(["## Measured", table, *lines])


def _training(info) -> str:
    facts = info.extra.get("training")
    rows = [
        f"| {_text(name.replace('_', ' '))} | {_text(value, 200)} |"
        for name, value in (facts if isinstance(facts, dict) else {}).items()
        if isinstance(value, str | int | float)
    ]
    return "\n".join(["## Training", "", "| | |", "|---|---|", *rows]) if rows else ""


def _provenance(info) -> str:
    versions = listed((f"{name} {version}" for name, version in info.versions.items()), 20)
    lines = [f"- base: {_span(info.base)}", f"- base fingerprint: {_span(info.base_fingerprint)}"]
    if objective := info.extra.get("objective"):
        lines.append(f"- the base predicts {_text(objective, 100)}")
    if versions:
        lines.append(f"- written with {_text(versions)}")
    return "## Provenance\n\n" + "\n".join(lines)


def _number(value) -> str:
    return f"{value:.4g}" if _is_number(value) else ""


def _is_number(value) -> bool:
    return isinstance(value, int | float) and abs(value) < 1e300


def _text(text: object, limit: int = 1000) -> str:
    """Escape text from an adapter's file for Markdown: one line, without effect as markup or HTML."""
    return _MARKUP.sub(r"\\\g<0>", one_line(text, limit) if str(text) else "")


def _span(text: str) -> str:
    """Text as a code span, with enough backticks that none in the text can close it."""
    text = one_line(text, 1000) if text else ""
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence} {text} {fence}" if "`" in text else f"`{text}`"


def _literal(value: object) -> str:
    """A JSON value as a Python literal, with text on one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_literal(key)}: {_literal(item)}" for key, item in value.items()) + "}"
    if isinstance(value, str):
        return json.dumps(one_line(value, 1000) if value else "", ensure_ascii=False)
    return repr(value)
