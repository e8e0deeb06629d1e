"""The model card of an adapter folder."""

from collections.abc import Collection

LOADING = {
    "generation": """\
from onelora_vision.generator import load_generator

generator = load_generator("{folder}")  # finds the base by its id; base="…" gives another place
images = generator.sample(["{example}"], seeds=[0])  # (1, 3, H, W) in [0, 1]""",
    None: """\
import onelora_vision  # registers the method in PEFT
from peft import PeftModel

model = PeftModel.from_pretrained(base_model, "{folder}")""",
}


def card(info, config: dict, values: int, size: int, pictures: Collection[str] = ()) -> str:
    """Markdown for an adapter: what it is, how to load it, what was measured. ``info`` is its `AdapterInfo`."""
    example = info.class_names[0] if info.class_names else ""
    usage = LOADING.get(info.task, LOADING[None]).format(folder="path/to/this/folder", example=example)
    parts = [
        _front_matter(info),
        f"# {info.method} adapter for {info.base or 'an unnamed base'}",
        f"A {info.task or 'fine-tuning'} adapter of {values:,} values ({size:,} bytes), method **{info.method}** "
        f"(`peft_type` {config.get('peft_type')}), made with onelora_vision.",
        "## Use\n\nWithout `import onelora_vision`, PEFT does not know the method and stops with `KeyError`.\n\n"
        f"```python\n{usage}\n```",
        _classes(info),
        _metrics(info),
        "\n\n".join(f"![{name}]({name})" for name in pictures),
        _provenance(info),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _front_matter(info) -> str:
    return f"---\nlibrary_name: peft\nbase_model: {info.base}\nlicense: other\ntags:\n- onelora_vision\n- {info.method}\n---"


def _classes(info) -> str:
    if not info.class_names:
        return ""
    shown = ", ".join(info.class_names[:20])
    more = f" and {len(info.class_names) - 20} more" if len(info.class_names) > 20 else ""
    return f"## Classes\n\n{len(info.class_names)}: {shown}{more}"


def _metrics(info) -> str:
    before, after = info.metrics.get("before", {}), info.metrics.get("after", {})
    rows = [
        f"| {name} | {_number(before.get(name))} | {_number(after.get(name))} |"
        for name in dict.fromkeys([*before, *after])
        if isinstance(after.get(name, before.get(name)), int | float)
    ]
    if not rows:
        return ""
    table = "\n".join(["| | before | after |", "|---|---|---|", *rows])
    return f"## Measured\n\n{table}" + (f"\n\nProtocol: {info.protocol}" if info.protocol else "")


def _provenance(info) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in info.versions.items())
    lines = [f"- base: `{info.base}`", f"- base fingerprint: `{info.base_fingerprint}`"]
    if versions:
        lines.append(f"- written with {versions}")
    return "## Provenance\n\n" + "\n".join(lines)


def _number(value) -> str:
    return "" if value is None else f"{value:.4g}"
