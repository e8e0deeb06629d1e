"""Base models shared by every user: loaded once, never written to, seen through cheap copies of their module tree.

A view has modules of its own over the base's tensors. An adapter is attached to a view, so a request of one user
cannot reach another's, and no weight of a base is ever changed or merged.
"""

import json
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from app.hub import HUB_ID
from onelora_vision import embedded
from onelora_vision.adapters.bases import Base, load_base, require_same_base
from onelora_vision.adapters.file import Adapter
from onelora_vision.adapters.info import AdapterInfo
from onelora_vision.backbones.base import shared_copy
from onelora_vision.errors import InputError, listed, one_line
from onelora_vision.runtime.device import choose_device

EMBEDDED = {"generation": "embedded", "classification": "embedded", "depth": "embedded/depth"}
_SETTINGS = ("fuse_qkv", "stock_numerics", "max_depth", "architecture", "resolution")
MAX_BASES, MAX_VIEWS = 8, 8


@dataclass(frozen=True)
class View:
    """A model of one mix: the network with its adapter attached, and what its base's loader gave besides."""

    model: nn.Module
    base: Base
    class_names: list[str]


def share_equal(model: nn.Module, other: nn.Module) -> None:
    """Let ``model`` use the memory of ``other`` wherever they have the same values under the same name."""
    theirs = dict(other.named_parameters())
    for name, parameter in model.named_parameters():
        twin = theirs.get(name)
        if twin is not None and torch.equal(parameter, twin):
            parameter.data = twin.data


class Bases:
    """The bases in memory, and the views that were used last.

    Args:
        folders: pipeline and model folders that may be used, by the names that people choose them by.
        fetch: gets a hub id or a timm name as a folder of safetensors files.
        hub: the hub ids and timm names that it may be asked for.
    """

    def __init__(
        self,
        folders: Mapping[str, Path],
        fetch: Callable[[str], Path],
        hub: Collection[str] = (),
        device: str | None = None,
    ):
        self.folders = {name: Path(path).resolve() for name, path in folders.items()}
        self._fetch, self._fetched, self.hub = fetch, {}, frozenset(hub)
        self.device = choose_device(device)
        self._lock = threading.RLock()
        self._bases: OrderedDict[tuple, Base] = OrderedDict()
        self._views: OrderedDict[tuple, View] = OrderedDict()

    def names(self) -> dict[Path, str]:
        """The folders that bases are in, with the names that users know them by."""
        shipped = {embedded.ADAPTERS.parent: "embedded"}
        return shipped | {Path(folder): name for name, folder in (*self._fetched.items(), *self.folders.items())}

    def source(self, task: str, name: str) -> str:
        """What the library's loaders take for a base that a person chose or an adapter's file names.

        Raises:
            InputError: a folder or hub id that this app was not started with: a stranger's file does not choose what
                is opened or downloaded.
        """
        if name in ("", EMBEDDED[task]):
            return EMBEDDED[task]
        if name in self.folders:
            return str(self.folders[name])
        if (found := Path(name).expanduser()).is_absolute() and found.resolve() in self.folders.values():
            return str(found.resolve())
        if name in self.hub:
            if name not in self._fetched:
                self._fetched[name] = str(self._fetch(name))
            return self._fetched[name]
        shown, known = one_line(name, 100), listed([EMBEDDED[task], *self.folders])
        if HUB_ID.fullmatch(name) or _is_timm_name(name):
            raise InputError(
                f"base {shown!r} is not downloaded by this app (bases here: {known}); its operator can allow it with "
                f"--hub_bases {shown}"
            )
        raise InputError(
            f"base {shown!r} is not one of this app's ({known}); its operator can add a folder with --bases FOLDER"
        )

    def base(self, info: AdapterInfo, name: str = "") -> Base:
        """The base of adapters with ``info``'s task and settings, loaded when it is first asked for."""
        key = self._key(info, name)
        with self._lock:
            if key not in self._bases:
                self._bases[key] = self._load(info, key)
                while len(self._bases) > MAX_BASES:  # files may ask for any settings
                    self._bases.popitem(last=False)
            self._bases.move_to_end(key)
            return self._bases[key]

    def _key(self, info: AdapterInfo, name: str) -> tuple:
        settings = {key: info.extra[key] for key in _SETTINGS if info.extra.get(key) not in (None, False)}
        return (info.task, self.source(info.task, name or info.base), json.dumps(settings, sort_keys=True))

    def _load(self, info: AdapterInfo, key: tuple) -> Base:
        task, source, settings = key
        loaded = load_base(replace(info, class_names=None, extra=json.loads(settings), base=source), source)
        loaded.model.to(self.device)
        for (other_task, place, _), other in self._bases.items():
            if (other_task, place) == (task, source):
                share_equal(loaded.model, other.model)
        if task == "generation":
            loaded.loaded.vae.to(self.device).eval().requires_grad_(False)
        return loaded

    def view(self, info: AdapterInfo, mix: Adapter | None, mark: tuple, name: str = "") -> View:
        """The base of ``info``, fitted to its classes, with the adapter ``mix`` attached (None: the base alone).

        ``mark`` identifies the mix, so that a view that was used before is used again.

        Raises:
            InputError: no such base, or not the adapter's.
        """
        base = self.base(info, name)
        key = (self._key(info, name), mark, tuple(info.class_names or ()))
        with self._lock:
            if key not in self._views:
                if mix is not None:
                    require_same_base(mix, base)
                self._views[key] = _fitted(base, info, mix, self.device)
                while len(self._views) > MAX_VIEWS:
                    self._views.popitem(last=False)
            self._views.move_to_end(key)
            return self._views[key]


def _fitted(base: Base, info: AdapterInfo, mix: Adapter | None, device: torch.device) -> View:
    """A view of ``base`` with the classes of ``info``, in the way of the library's own loaders."""
    from onelora_vision.backbones.vit import replace_head

    model, names = shared_copy(base.model), list(getattr(base.loaded, "class_names", None) or [])
    loaded = base.loaded
    if info.task == "generation":
        if info.class_names:
            model.set_classes(info.class_names, names, torch.Generator().manual_seed(0))
        loaded = replace(base.loaded, transformer=model)
    elif info.task == "classification":
        loaded = replace(base.loaded, model=model)
        if info.class_names:
            loaded = replace_head(loaded, info.class_names)
    names = list(info.class_names or names)
    if mix is not None:
        model = mix.attach(model).to(device)
    model.eval().requires_grad_(False)
    return View(model, replace(base, loaded=loaded), names)


def _is_timm_name(name: str) -> bool:
    import timm

    return bool(re.fullmatch(r"[\w.]+", name)) and timm.is_model(name.split(".")[0])
