"""Base models shared by all users: loaded once, never written to, and used through views.

A view has its own modules over the base's tensors. Adapters are attached to views, so users cannot affect each other,
and no weight of a base is ever changed or merged.
"""

import json
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from onelora_vision import embedded
from onelora_vision.adapters.bases import load_base, require_same_base
from onelora_vision.adapters.file import Adapter
from onelora_vision.adapters.info import AdapterInfo
from onelora_vision.backbones.base import Base
from onelora_vision.backbones.table import base_class
from onelora_vision.errors import InputError, listed, one_line
from onelora_vision.runtime.device import choose_device
from onelora_vision.runtime.hub import HUB_ID

from .mix import Mix

MAX_BASES, MAX_VIEWS = 8, 8


def share_equal(model: nn.Module, other: nn.Module) -> None:
    """Let ``model`` use the memory of ``other`` wherever they have the same values under the same name."""
    theirs = dict(other.named_parameters())
    for name, parameter in model.named_parameters():
        twin = theirs.get(name)
        if twin is not None and torch.equal(parameter, twin):
            parameter.data = twin.data


class Bases:
    """The bases in memory and the most recently used views.

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
        self._views: OrderedDict[tuple, Base] = OrderedDict()

    def names(self) -> dict[Path, str]:
        """The folders of all bases, mapped to the names that users see."""
        shipped = {embedded.ADAPTERS.parent: "embedded"}
        return shipped | {Path(folder): name for name, folder in (*self._fetched.items(), *self.folders.items())}

    def source(self, task: str, name: str) -> str:
        """What the library's loaders take for a base that a person chose or an adapter's file names.

        Raises:
            InputError: a folder or hub id that this app was not started with: a stranger's file does not choose what
                is opened or downloaded.
        """
        if name in ("", *embedded.names_of(task)):
            return name or embedded.name_of(task)
        if name in self.folders:
            return str(self.folders[name])
        if (found := Path(name).expanduser()).is_absolute() and found.resolve() in self.folders.values():
            return str(found.resolve())
        if name in self.hub:
            if name not in self._fetched:
                self._fetched[name] = str(self._fetch(name))
            return self._fetched[name]
        shown, known = one_line(name, 100), listed([*embedded.names_of(task), *self.folders])
        if HUB_ID.fullmatch(name) or _is_timm_name(name):
            raise InputError(
                f"base {shown!r} is not downloaded by this app (bases here: {known}); its operator can allow it with "
                f"--hub_bases {shown}"
            )
        raise InputError(
            f"base {shown!r} is not one of this app's ({known}); its operator can add a folder with --bases FOLDER"
        )

    def base(self, info: AdapterInfo, name: str = "") -> Base:
        """The base of adapters with ``info``'s task and settings, loaded on first use."""
        key = self._key(info, name)
        with self._lock:  # files may ask for any settings, so the number of bases is limited too
            return _remembered(self._bases, key, lambda: self._load(info, key), MAX_BASES)

    def _key(self, info: AdapterInfo, name: str) -> tuple:
        source = self.source(info.task, name or info.base)
        family = base_class(info.task, embedded.resolve(info.task, source))
        names = {*family.load_settings, *family.fit_settings}
        settings = {key: info.extra[key] for key in names if info.extra.get(key) not in (None, False)}
        return (info.task, source, json.dumps(settings, sort_keys=True))

    def _load(self, info: AdapterInfo, key: tuple) -> Base:
        task, source, settings = key
        loaded = load_base(replace(info, class_names=None, extra=json.loads(settings), base=source), source)
        for network in loaded.networks():
            network.to(self.device).eval().requires_grad_(False)
        for (other_task, place, _), other in self._bases.items():
            if (other_task, place) == (task, source):
                share_equal(loaded.model, other.model)
        return loaded

    def view(self, mix: Mix, name: str = "") -> Base:
        """The base called ``name`` (default: the one of the mix), fitted to the mix, with its adapter attached.

        The view is in eval mode and shared by requests: call its network, and never change it.

        Raises:
            InputError: no such base, the adapters were trained on another one, or they have no sum.
        """
        base = self.base(mix.info, name)
        adapter = mix.adapter(base)  # each time: a fingerprint does not cover all that can be wrong with a mix
        if adapter is not None:
            require_same_base(adapter.info, adapter.path, base)
        key = (self._key(mix.info, name), mix.fingerprint, tuple(mix.info.class_names or ()))
        with self._lock:
            return _remembered(self._views, key, lambda: self._attach(base, mix.info, adapter), MAX_VIEWS)

    def _attach(self, base: Base, info: AdapterInfo, adapter: Adapter | None) -> Base:
        view = base.view().fit(info.class_names)
        if adapter is not None:
            view.model = adapter.attach(view.model).to(self.device)
        view.model.eval().requires_grad_(False)
        return view


def _remembered(known: OrderedDict[tuple, Base], key: tuple, make: Callable[[], Base], limit: int) -> Base:
    """The value of ``key``, made on first use. Beyond ``limit`` values, the least recently used one is dropped."""
    if key not in known:
        known[key] = make()
        while len(known) > limit:
            known.popitem(last=False)
    known.move_to_end(key)
    return known[key]


def _is_timm_name(name: str) -> bool:
    import timm

    return bool(re.fullmatch(r"[\w.]+", name)) and timm.is_model(name.split(".")[0])
