"""Registers this package's methods when PEFT is imported, without importing PEFT itself, which takes seconds."""

import importlib
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

METHODS = ("onelora_vision.tuners.mora", "onelora_vision.tuners.onelora")  # they register on import


def register_with_peft() -> None:
    """Register now if PEFT is already imported, otherwise right after it is imported."""
    if "peft" in sys.modules:
        _register()
    else:
        sys.meta_path.insert(0, _PeftFinder())


def _register() -> None:
    for name in METHODS:
        importlib.import_module(name)


class _PeftFinder(MetaPathFinder):
    """Finds PEFT through the other finders, and wraps its loader so that our registration follows."""

    def find_spec(self, name: str, path=None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != "peft":
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        spec = next((found for finder in others if (found := finder.find_spec(name, path, target))), None)
        if spec is not None and spec.loader is not None:
            spec.loader = _RegisteringLoader(spec.loader)
        return spec


class _RegisteringLoader(Loader):
    """Wraps PEFT's loader, and restores it on the module so that no trace of the wrapper is left."""

    def __init__(self, loader: Loader):
        self.loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__.loader = module.__loader__ = self.loader
        self.loader.exec_module(module)
        _register()
