"""The header of an adapter file: task, method, base, classes, metrics."""

import functools
import importlib.metadata
import json
from dataclasses import dataclass, field
from dataclasses import fields as dataclass_fields

from onelora_vision.diffusion.settings import SamplingSettings
from onelora_vision.errors import InputError, one_line
from onelora_vision.storage.safetensors_file import parse_json

FORMAT_VERSION = "1"
HEADER_PREFIX = "onelora."
_MAX_HEADER_TEXT = 1000


def _is_text(value: object) -> bool:
    return isinstance(value, str) and len(value) <= _MAX_HEADER_TEXT and value.isprintable()


def _is_number_or_none(value: object) -> bool:
    return value is None or (isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31)


def _are_names(value: object) -> bool:
    return value is None or (isinstance(value, list) and all(_is_text(name) for name in value))


def _are_metrics(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(part, dict) for part in value.values())


def _check_settings(extra: dict, where: str) -> None:
    """Check the settings that decide how a base is loaded and used. All others are unrestricted."""
    for key, is_possible in _SETTINGS.items():
        if extra.get(key) is not None and not is_possible(extra[key]):
            raise InputError(f"{where}: its setting {key} cannot be {one_line(repr(extra[key]), 60)}")
    try:
        SamplingSettings.from_record(extra.get("sampling") or {})
    except InputError as error:
        raise InputError(f"{where}: its setting sampling cannot be used ({one_line(error)})") from None


def _is_dict(value: object) -> bool:
    return isinstance(value, dict)


def _is_resolution(value: object) -> bool:
    sides = value.split("x") if isinstance(value, str) else [str(value)]
    return len(sides) < 3 and all(side.isascii() and side.isdigit() and 0 < int(side[:6]) < 2**16 for side in sides)


def _is_host_call(call: dict) -> bool:
    """Whether a card can show ``call`` as Python code (see `Base.host_call`)."""
    options, name = call.get("options"), call.get("class")
    return (
        call.get("library") in ("diffusers", "timm", "transformers")
        and isinstance(name, str)
        and (not name or name.isidentifier())
        and _is_text(call.get("source"))
        and isinstance(options, dict)
        and all(key.isidentifier() for key in options)
        and len(json.dumps(options)) <= _MAX_HEADER_TEXT
    )


_SETTINGS = {
    **dict.fromkeys(("fuse_qkv", "stock_numerics"), lambda value: isinstance(value, bool)),
    **dict.fromkeys(("architecture", "objective"), _is_text),
    "resolution": _is_resolution,
    "prompt_template": lambda value: isinstance(value, str) and len(value) <= _MAX_HEADER_TEXT,
    "max_new_tokens": lambda value: type(value) is int and 0 < value < 2**20,
    "max_depth": lambda value: type(value) in (int, float) and 0 < value < 1e6,
    **dict.fromkeys(("sampling", "exported", "training"), _is_dict),
    "host": lambda value: _is_dict(value) and _is_host_call(value),
}


_IS_POSSIBLE = {
    **dict.fromkeys(("task", "method", "base", "base_fingerprint", "protocol", "data", "license"), _is_text),
    "class_names": _are_names,
    "null_class": _is_number_or_none,
    "metrics": _are_metrics,
    "extra": _is_dict,
    "versions": _is_dict,
}
VERSIONED_PACKAGES = ("onelora_vision", "torch", "peft", "diffusers", "transformers", "timm")


@dataclass
class AdapterInfo:
    """What an adapter is for and where it comes from, stored in the header of its file.

    Attributes:
        task: ``generation``, ``classification``, ``depth`` or ``language``.
        method: name of the method in `onelora_vision.methods.apply`.
        base: hub id or folder name of the base model, as given by the user.
        base_fingerprint: `fingerprint` of the base's parameters.
        class_names: the classes of the head or label table trained with it.
        null_class: label of "no class" (generation).
        metrics: ``{"before": {...}, "after": {...}}``.
        protocol: how the metrics were measured.
        extra: further settings needed to load or use the adapter, such as ``{"fuse_qkv": true}``.
        versions: versions of the libraries that wrote the file.
        data: description of the training data.
        license: licence of the adapter, in the hub's spelling.
    """

    task: str
    method: str
    base: str
    base_fingerprint: str = ""
    class_names: list[str] | None = None
    null_class: int | None = None
    metrics: dict = field(default_factory=dict)
    protocol: str = ""
    extra: dict = field(default_factory=dict)
    versions: dict = field(default_factory=dict)
    data: str = ""
    license: str = ""

    @property
    def guidance_distillation(self) -> float | None:
        """The guidance distilled into the adapter (see `diffusion.guidance.distilled_target`), or None."""
        facts = self.extra.get("training")
        value = facts.get("guidance_distillation") if isinstance(facts, dict) else None
        return value if type(value) in (int, float) and 1 < value < 2 else None

    def to_header(self) -> dict[str, str]:
        """Encode the fields as ``onelora.*`` strings for a safetensors header, each value as JSON."""
        values = {f.name: getattr(self, f.name) for f in dataclass_fields(self)}
        values["versions"] = self.versions or library_versions()
        header = {HEADER_PREFIX + key: json.dumps(value, ensure_ascii=False) for key, value in values.items()}
        return {"format": "pt", HEADER_PREFIX + "format_version": FORMAT_VERSION, **header}

    @classmethod
    def from_header(cls, header: dict[str, str], where: str = "the adapter file") -> "AdapterInfo":
        """Decode the strings of `to_header`. Without them, as in files of other tools, the fields are empty."""
        version = header.get(HEADER_PREFIX + "format_version", FORMAT_VERSION)
        if version != FORMAT_VERSION:
            raise InputError(
                f"{where}: format version {one_line(version, 20)} is newer than {FORMAT_VERSION}; update onelora_vision"
            )
        values = {}
        for name in (f.name for f in dataclass_fields(cls)):
            text = header.get(HEADER_PREFIX + name)
            if text is not None:
                try:
                    values[name] = parse_json(text, constant=lambda name: None)
                except ValueError as error:
                    raise InputError(
                        f"{where}: header key {HEADER_PREFIX}{name} is not JSON ({one_line(error)})"
                    ) from error
                if not _IS_POSSIBLE[name](values[name]):
                    raise InputError(f"{where}: header key {HEADER_PREFIX}{name} cannot be {one_line(text, 60)}")
        _check_settings(values.get("extra", {}), where)
        return cls(**{"task": "", "method": "", "base": "", **values})


@functools.cache
def library_versions() -> dict[str, str]:
    """Installed versions of the packages that determine what an adapter means."""
    versions = {}
    for package in VERSIONED_PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
