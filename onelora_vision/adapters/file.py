"""The adapter file: a PEFT folder, with a header that says what the adapter is and which base it belongs to.

A folder holds ``adapter_config.json``, ``adapter_model.safetensors`` and a ``README.md`` card;
``PeftModel.from_pretrained`` loads it. The safetensors header holds ``onelora.*`` strings (`AdapterInfo` and the PEFT
config), so this file alone is a complete adapter, too.
"""

import copy
import json
import shutil
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import save
from torch import nn

from onelora_vision.adapters.card import card
from onelora_vision.adapters.container import CARD_FILE, CONFIG_FILE, WEIGHTS_FILE, read_contents
from onelora_vision.adapters.info import HEADER_PREFIX, AdapterInfo
from onelora_vision.adapters.kinds import kind_of
from onelora_vision.adapters.layout import layout_of
from onelora_vision.adapters.validate import check_classes, check_tensors, parse_config
from onelora_vision.errors import InputError, listed, one_line
from onelora_vision.methods.peft_config import changes_base
from onelora_vision.methods.residual import as_plain_lora
from onelora_vision.storage.outputs import Ledger, check_file, check_folder, file_output, folder_output
from onelora_vision.storage.weights import tensors_in
from onelora_vision.tuners import hosts, shortcuts
from onelora_vision.tuners.matching import resolve, resolve_whole
from onelora_vision.tuners.model import own_modules

ADAPTER = "adapter"


@dataclass
class Adapter:
    """An adapter read from disk: its PEFT config, its tensors by their PEFT names, and its header."""

    config: PeftConfig
    tensors: dict[str, torch.Tensor]
    info: AdapterInfo
    path: Path
    header_config: str = ""  # text of the config in the header; in a folder, the config file takes precedence

    def attach(self, model: nn.Module, adapter_name: str = "default", *, is_trainable: bool = False) -> PeftModel:
        """Attach the adapter to a base model, or add it to a PeftModel. Every tensor must match one in the model.

        Raises:
            InputError: names or shapes do not match, or a layer cannot be adapted; the message lists them.
        """
        # PEFT would warn about the base's name, since it does not know the name of a timm or diffusers model.
        config = copy.deepcopy(self.config)
        config.inference_mode, config.base_model_name_or_path, config.task_type = not is_trainable, None, None
        had_adapters = isinstance(model, PeftModel)
        peft_model = model if had_adapters else None
        try:
            self._check_host(model.get_base_model() if had_adapters else model)
            self._resolve(config, model.get_base_model() if had_adapters else model)
            if had_adapters:
                model.add_adapter(adapter_name, config)
            else:
                peft_model = get_peft_model(model, config, adapter_name=adapter_name)
            self.check_fits(peft_model, adapter_name)
            set_peft_model_state_dict(peft_model, self.tensors, adapter_name=adapter_name)
        except (ValueError, RuntimeError, KeyError, TypeError, AttributeError) as error:
            _take_off(peft_model, adapter_name, had_adapters)
            if isinstance(error, InputError):
                raise
            raise InputError(f"{self.path}: does not fit this base ({one_line(error, 300)})") from error
        shortcuts.call_adapted_layers(peft_model)
        return peft_model

    def _resolve(self, config: PeftConfig, base: nn.Module) -> None:
        """Replace the file's names and expressions by module names of ``base``; PEFT would pass them to ``re``."""
        names = [name for name, _ in own_modules(base)]
        resolve(config, names, str(self.path))
        if config.modules_to_save and not kind_of(config).is_ours:  # our own tuners match these themselves
            resolve_whole(config, names)

    def _check_host(self, base: nn.Module) -> None:
        """Apply our own tuners' checks to adapters of any method. Modules that do not exist are reported later."""
        layout = layout_of(self.config, self.tensors, str(self.path))
        known = {name for name, _ in base.named_modules()}
        if not kind_of(self.config).on_norms:
            hosts.check_adaptable(base, [name for name in layout.layers if name in known])
        hosts.check_trainable_whole(base, [name for name in layout.whole if name in known])

    def check_fits(self, model: PeftModel, adapter_name: str) -> dict[str, torch.Tensor]:
        """Return the tensors of the model's adapter.

        Raises:
            InputError: this adapter's tensors do not have exactly the same names and shapes.
        """
        expected = get_peft_model_state_dict(model, adapter_name=adapter_name, save_embedding_layers=False)
        missing, foreign = sorted(expected.keys() - self.tensors.keys()), sorted(self.tensors.keys() - expected.keys())
        wrong = [
            f"{key} {tuple(value.shape)} instead of {tuple(expected[key].shape)}"
            for key, value in self.tensors.items()
            if key in expected and value.shape != expected[key].shape
        ]
        problems = [
            f"{what}: {listed(names, 4)}"
            for what, names in (("missing", missing), ("unexpected", foreign), ("of another shape", wrong))
            if names
        ]
        if problems:
            raise InputError(f"{self.path}: the adapter does not match this base; {'; '.join(problems)}")
        return expected


def _take_off(model: PeftModel | None, adapter_name: str, had_adapters: bool) -> None:
    """Remove an adapter that does not fit, so the base is as it was before."""
    if model is None:
        return
    if not had_adapters:
        model.base_model.unload()
    elif adapter_name in model.peft_config:
        model.delete_adapter(adapter_name)


def save_adapter(
    model: PeftModel,
    folder: str | Path,
    info: AdapterInfo,
    *,
    adapter_name: str = "default",
    pictures: Collection = (),
    overwrite: bool = False,
) -> Path:
    """Write ``model``'s adapter as a folder, completely or not at all.

    Args:
        pictures: image files to show on the card.
        overwrite: replace an adapter that was written there before (see `outputs`).

    Raises:
        InputError: the place is taken by something else.
    """
    tensors = get_peft_model_state_dict(model, adapter_name=adapter_name, save_embedding_layers=False)
    tensors = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
    config = model.peft_config[adapter_name]
    if initial := getattr(model, "initial_values", None):
        config, tensors = as_plain_lora(config, tensors, initial)
    return write_adapter(config, tensors, info, folder, pictures=pictures, overwrite=overwrite)


def write_adapter(
    config: PeftConfig,
    tensors: dict[str, torch.Tensor],
    info: AdapterInfo,
    folder: str | Path,
    *,
    pictures: Collection = (),
    overwrite: bool = False,
) -> Path:
    """Write an adapter folder from its parts, or a single file if the name ends in ``.safetensors``.

    ``adapter_config.json`` and its copy in the header are the same text. ``pictures`` are copied into the folder and
    shown on its card.

    Raises:
        InputError: a picture is missing, or the place is taken (see `outputs`).
    """
    text, weights = _contents(config, tensors, info)
    if is_single_file(folder):
        with file_output(folder, overwrite=overwrite) as temporary:
            temporary.write_bytes(weights)
        return Path(folder)
    names = _names_of(pictures)
    with folder_output(folder, ADAPTER, overwrite=overwrite) as temporary:
        (temporary / CONFIG_FILE).write_text(text + "\n", encoding="utf-8")
        (temporary / WEIGHTS_FILE).write_bytes(weights)
        for picture, name in zip(pictures, names):
            shutil.copyfile(picture, temporary / name)
        (temporary / CARD_FILE).write_text(_card(info, text, tensors, len(weights), names), encoding="utf-8")
    return Path(folder)


def require_readable(config: PeftConfig) -> None:
    """Raise if an adapter with this config could be trained and saved, but not read back.

    Raises:
        InputError: a field does more than describe the adapter; the message names it.
    """
    if changes_base(config):
        config = as_plain_lora(config, {}, {})[0]  # as it is saved
    parse_config(_config_text(config), "this PEFT config")


def rewrite_card(adapter: Adapter, pictures: Collection = ()) -> Path:
    """Rewrite the card of an adapter folder from its current ``info``, and return the card's path.

    If this program wrote the weights, their header is updated as well. All other files stay as they are.

    Raises:
        InputError: a picture is missing, or the folder has a card, or a picture of the same name, that this program
            did not write or that was edited.
    """
    folder, names = adapter.path, _names_of(pictures)
    ledger = Ledger.read(folder) or Ledger(folder, ADAPTER)
    copied = [(picture, name) for picture, name in zip(pictures, names) if not _is_same(picture, folder / name)]
    ledger.require_ours([CARD_FILE, *(name for _, name in copied)])
    text, weights = _contents(adapter.config, adapter.tensors, adapter.info)
    if Ledger.read(folder) is None:
        ledger.create()
    if not ledger.foreign([WEIGHTS_FILE, CONFIG_FILE]):
        for name, content in ((WEIGHTS_FILE, weights), (CONFIG_FILE, f"{text}\n".encode())):
            with ledger.writing_file(name) as temporary:
                temporary.write_bytes(content)
    for picture, name in copied:
        with ledger.writing_file(name) as temporary:
            shutil.copyfile(picture, temporary)
    size = (folder / WEIGHTS_FILE).stat().st_size
    with ledger.writing_file(CARD_FILE) as temporary:
        temporary.write_text(_card(adapter.info, text, adapter.tensors, size, names), encoding="utf-8")
    return folder / CARD_FILE


def _contents(config: PeftConfig, tensors: dict[str, torch.Tensor], info: AdapterInfo) -> tuple[str, bytes]:
    """The text of the config, and the bytes of the weights file, whose header includes that text."""
    text = _config_text(config, info.base)
    return text, serialize(tensors, {**info.to_header(), HEADER_PREFIX + "config": text})


def _config_text(config: PeftConfig, base: str | None = None) -> str:
    record = {key: sorted(v) if isinstance(v, set) else v for key, v in config.to_dict().items()}
    record |= {"inference_mode": True, "base_model_name_or_path": base}
    return json.dumps(record, indent=2, sort_keys=True)


def _card(info: AdapterInfo, config: str, tensors: dict[str, torch.Tensor], size: int, pictures: list[str]) -> str:
    return card(info, json.loads(config), sum(tensor.numel() for tensor in tensors.values()), size, pictures)


def _names_of(pictures: Collection) -> list[str]:
    for picture in pictures:
        if not Path(picture).is_file():
            raise InputError(f"{picture}: no such picture for the card")
    return [Path(picture).name for picture in pictures]


def _is_same(file: str | Path, other: Path) -> bool:
    return other.exists() and Path(file).samefile(other)


def is_single_file(path: str | Path) -> bool:
    """Whether an adapter written to ``path`` becomes a single file instead of a folder."""
    return str(path).endswith(".safetensors")


def check_adapter_output(path: str | Path, *, overwrite: bool = False, inputs: Collection = ()) -> None:
    """Raise an `InputError` if no adapter may be written to ``path``. Commands call it before they start work."""
    if is_single_file(path):
        check_file(path, overwrite=overwrite, inputs=inputs)
    else:
        check_folder(path, ADAPTER, overwrite=overwrite, inputs=inputs)


def serialize(tensors: dict[str, torch.Tensor], header: dict[str, str]) -> bytes:
    """Serialise tensors to safetensors deterministically; the library itself shuffles the strings of the header."""
    data = save(tensors, metadata=header)
    length = int.from_bytes(data[:8], "little")
    fields = json.loads(data[8 : 8 + length])
    text = json.dumps({"__metadata__": dict(sorted(fields.pop("__metadata__").items())), **fields}, ensure_ascii=False)
    encoded = text.encode()
    encoded += b" " * (-len(encoded) % 8)  # the values start at a multiple of 8
    return len(encoded).to_bytes(8, "little") + encoded + data[8 + length :]


def read_adapter(path: str | Path, *, finite: bool = True) -> Adapter:
    """Read an adapter folder, a single ``.safetensors`` file whose header holds the config, or a ``.zip`` of either.

    ``finite=False`` accepts NaN and infinities, for inspecting a corrupted file.

    Raises:
        InputError: the file is missing, damaged or not an adapter. Nothing in it is executed or partly returned.
    """
    path = Path(path)
    weights, text = read_contents(path)
    tensors, header = tensors_in(weights), weights.strings
    inside = header.get(HEADER_PREFIX + "config", "")
    text = text or inside
    if not text:
        raise InputError(f"{path}: has no {CONFIG_FILE} next to it and no config in its header: not an adapter")
    config = parse_config(text, str(path))
    info = AdapterInfo.from_header(header, str(path))
    layout = layout_of(config, tensors, str(path))
    check_tensors(config, layout, str(path), finite=finite)
    check_classes(info, layout, str(path))
    return Adapter(config, tensors, info, path, inside)
