"""The interface of base models: the network, what its task needs in addition, and where the methods act on it."""

import contextlib
import copy
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from onelora_vision.errors import InputError, one_line
from onelora_vision.runtime.hub import expect_hub
from onelora_vision.tuners.whole import substituted


@dataclass(frozen=True)
class Adaptation:
    """The modules of a model that the methods act on, by full name.

    Attributes:
        target_modules: the Linear layers that get an adapter (in the paper, every linear except the classifier).
        norm_modules: normalisation layers with parameters, for methods that train norms.
        whole_modules: modules that every method trains whole: a new classification head, DiT's label table.
    """

    target_modules: list[str]
    norm_modules: list[str] = field(default_factory=list)
    whole_modules: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class OwnParts:
    """The parts that `Base.fit` replaces or changes for other data, as they were loaded.

    Attributes:
        modules: copies of `Base.replaced_modules`, by full name.
        config: the network's config, with its classes and depth range; None if the host does not keep one.
        class_names: classes of the head or label table among the modules.
    """

    modules: dict[str, nn.Module]
    config: Any = None
    class_names: list[str] | None = None


@dataclass(kw_only=True)
class Base(ABC):
    """A base model without an adapter. Each family of networks has a subclass and a row in `backbones.table`.

    Attributes:
        model: the network that adapters are attached to.
        source: where it was loaded from: a folder, a file, a hub id or a timm name.
        class_names: names of its classes, if its task has classes and it names them.
        changed: modules whose values `fit` changed in a way that no option of the host's own loader can reproduce.
    """

    model: nn.Module
    source: str = ""
    class_names: list[str] | None = None
    changed: tuple[str, ...] = ()
    _fingerprint: str = field(default="", repr=False)

    task: ClassVar[str]
    #: Settings of an adapter (in `AdapterInfo.extra`) that `load` accepts; `fit_settings` are those of `fit`.
    load_settings: ClassVar[tuple[str, ...]] = ()
    #: Further settings for `load` if an adapter is used as it was trained, and not merged or compared.
    use_settings: ClassVar[tuple[str, ...]] = ()
    fit_settings: ClassVar[tuple[str, ...]] = ("fuse_qkv",)

    @property
    @abstractmethod
    def host(self) -> str:
        """The library that the network comes from: ``diffusers``, ``timm`` or ``transformers``."""

    @classmethod
    @abstractmethod
    def load(cls, source: str | Path, **settings: Any) -> Self:
        """Load the network with its weights in fp32.

        Raises:
            InputError: the model does not exist or is not of this family.
        """

    @classmethod
    @abstractmethod
    def from_config(cls, config: dict, num_classes: int | None = None, fuse_qkv: bool = False) -> Self:
        """Build the network described by a ``config.json``, with freshly initialised weights."""

    def fit(self, class_names: list[str] | None = None, *, seed: int = 0, **settings: Any) -> Self:
        """Fit the base to a dataset, in place: its classes, depth range and attention. Return the base.

        Args:
            class_names: the new classes, for a task with classes.
            seed: seed for the random values of new classes.
            settings: the settings in `fit_settings`, and further ones of the subclass.

        Raises:
            InputError: the network cannot be fitted in this way.
        """
        self.fingerprint()  # of the network as loaded, before it changes
        self._fit(class_names, seed=seed, **settings)
        return self

    @abstractmethod
    def _fit(self, class_names: list[str] | None, *, seed: int, **settings: Any) -> None: ...

    @abstractmethod
    def adaptation(self) -> Adaptation:
        """The modules of the network that the methods act on."""

    @abstractmethod
    def replaced_modules(self) -> list[str]:
        """Modules that training replaces or trains whole: the label table, the head."""

    def own_parts(self) -> OwnParts:
        """Copy the parts that `fit` will replace or change. Call this before `fit`."""
        modules = {name: copy.deepcopy(self.model.get_submodule(name)) for name in self.replaced_modules()}
        for module in modules.values():
            module.eval().requires_grad_(False)
        return OwnParts(modules, copy.deepcopy(getattr(self.model, "config", None)), self.class_names)

    @contextlib.contextmanager
    def with_own_parts(self, own: OwnParts) -> Iterator[None]:
        """Context manager that puts the network's ``own`` parts back, even if an adapter has replaced them.

        Everything trained outside of these parts stays as it is.
        """
        device, config = next(self.model.parameters()).device, getattr(self.model, "config", None)
        with substituted(self.model, {name: module.to(device) for name, module in own.modules.items()}):
            self._take_config(own.config)
            try:
                yield
            finally:
                self._take_config(config)

    def _take_config(self, config: Any) -> None:
        if config is not None:
            self.model.config = config

    @abstractmethod
    def example(self, batch: int = 3, seed: int = 0) -> dict[str, Tensor]:
        """Example inputs of the network by argument name, the same in every run."""

    def set_length(self, tokens: int) -> None:
        """Set the sequence length of `example`, for a base that takes text.

        Raises:
            InputError: the base does not take text, or ``tokens`` is below 1.
        """
        raise InputError(f"--max_length: {type(self.model).__name__} takes no text; leave it out")

    def fingerprint(self) -> str:
        """The `fingerprint` of the network as it was loaded, without `replaced_modules`."""
        if not self._fingerprint:
            self._fingerprint = fingerprint(self.model, self.replaced_modules())
        return self._fingerprint

    def predict(self, inputs: dict[str, Tensor]) -> Tensor:
        """The network's output for ``inputs`` (see `example`) as one tensor."""
        return output_of(self.model, inputs)

    def view(self) -> Self:
        """A base over the same parameters and buffers whose modules can be replaced without changing this one."""
        return replace(self, model=shared_copy(self.model))

    def networks(self) -> list[nn.Module]:
        """All networks of the base."""
        return [self.model]

    @property
    def objective(self) -> object | None:
        """What the network was trained to predict, if the task has several objectives. Adapter files record it."""
        return None

    @property
    def preprocessing(self) -> dict[str, Any]:
        """How the base makes its inputs from pictures, as JSON; empty if adapter files do not record it."""
        return {}

    @abstractmethod
    def save_merged(self, model: nn.Module, folder: Path, dtype: torch.dtype, max_shard_size: str) -> None:
        """Save ``model``, the network with an adapter merged, to ``folder`` in the format of the host's own class."""

    @property
    def host_class(self) -> str:
        """The host's class whose ``from_pretrained`` loads the network; empty for timm, which uses a function."""
        return type(self.model).__name__

    def host_source(self) -> str:
        """`source` in the form that the host's own loader accepts."""
        return self.source

    def host_options(self) -> dict[str, Any]:
        """The other arguments that make the host's loader return this network as fitted."""
        return {}

    def host_call(self, name: str = "") -> dict[str, Any]:
        """How the host's own library loads this network, as JSON: ``library``, ``class``, ``source`` and ``options``.

        Args:
            name: replacement for `source`, for texts that are read on other machines.
        """
        call = {"source": self.host_source(), "options": self.host_options()}
        if name and self.source:
            call = _renamed(call, self.source, name)
        return {"library": self.host, "class": self.host_class, **call}

    def compute_like_host(self, *, with_config: bool) -> None:  # noqa: B027 - optional
        """Make the network compute what the host's own class computes with these weights, in place.

        Args:
            with_config: whether the host will read a config written by this network, which can preserve some
                differences.
        """

    def host_inputs(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Convert ``inputs`` of the fitted network to those of the network as it was loaded."""
        return inputs


def _renamed(value: Any, old: str, new: str) -> Any:
    """Replace ``old`` by ``new`` in all strings of a JSON value."""
    if isinstance(value, dict):
        return {key: _renamed(item, old, new) for key, item in value.items()}
    return value.replace(old, new) if isinstance(value, str) else value


def fingerprint(model: nn.Module, exclude: Collection[str] = ()) -> str:
    """Hash that identifies a base model: names, shapes and 16 values of each parameter, rounded to bf16.

    The rounding makes it the same for a base loaded in fp32 or bf16. Compute it before adapters are injected, and
    ``exclude`` the modules that are replaced for the task (head, label table).
    """
    digest = hashlib.sha256()
    skipped = tuple(f"{name}." for name in exclude)
    for name, parameter in sorted(model.named_parameters()):
        if name.startswith(skipped) and skipped:
            continue
        flat = parameter.detach().flatten()
        at = torch.linspace(0, max(flat.numel() - 1, 0), min(16, flat.numel()), dtype=torch.float64).long()
        values = flat[at.to(flat.device)].to("cpu", torch.bfloat16).view(torch.int16).tolist()
        digest.update(repr((name, tuple(parameter.shape), values)).encode())
    return digest.hexdigest()[:32]


def output_of(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    """The model's output as one tensor, for any host's output class."""
    inputs = dict(inputs)
    output = model(inputs.pop("x"), **inputs) if "x" in inputs else model(**inputs)
    if isinstance(output, Tensor):
        return output
    return next(getattr(output, name) for name in ("sample", "logits", "predicted_depth") if hasattr(output, name))


def norms_with_parameters(model: nn.Module, prefix: str = "") -> list[str]:
    """Names of the normalisation layers under ``prefix`` that have at least one parameter."""
    return [
        name
        for name, module in model.named_modules()
        if name.startswith(prefix)
        and "norm" in type(module).__name__.lower()
        and any(True for _ in module.parameters(recurse=False))
    ]


def enable_gradient_checkpointing(model: nn.Module) -> None:
    """Recompute each block's activations in the backward pass, using the host's own implementation.

    Raises:
        InputError: the host does not support it.
    """
    try:
        if hasattr(model, "set_grad_checkpointing"):  # timm
            model.set_grad_checkpointing(True)
        elif hasattr(model, "activation_checkpointing_enable"):  # transformers
            model.activation_checkpointing_enable({"use_reentrant": False})
        elif hasattr(model, "gradient_checkpointing_enable"):  # transformers before 5.24
            model.gradient_checkpointing_enable({"use_reentrant": False})
        else:
            model.enable_gradient_checkpointing()  # diffusers
    except (AttributeError, AssertionError, ValueError, NotImplementedError) as error:
        raise InputError(
            f"--gradient_checkpointing: {type(model).__name__} does not support it ({one_line(error)}); leave it out"
        ) from error


def block_list(model: nn.Module) -> str | None:
    """Name of the largest list of two or more modules of one class: a transformer's blocks. None if there is none."""
    lists = {name: list(m) for name, m in model.named_modules() if isinstance(m, (nn.ModuleList, nn.Sequential))}
    alike = {n: blocks for n, blocks in lists.items() if len(blocks) > 1 and len({type(b) for b in blocks}) == 1}
    return max(alike, key=lambda n: sum(p.numel() for b in alike[n] for p in b.parameters()), default=None)


def shared_copy(model: nn.Module) -> nn.Module:
    """Copy the module tree, sharing parameters and buffers."""
    return copy.deepcopy(model, {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]})


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Load or save a transformers model without the library's progress bar and its table of missing and unused weights.

    Callers check ``output_loading_info`` instead.
    """
    from transformers.utils import logging as transformers_logging

    shown, verbosity = transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if shown:
            transformers_logging.enable_progress_bar()


def save_transformers(
    model: nn.Module, folder: Path, dtype: torch.dtype, max_shard_size: str, source: str | Path
) -> None:
    """Implement `Base.save_merged` for transformers, including the image processor of ``source`` (folder or hub id)."""
    from onelora_vision.backbones.fuse import unfuse_qkv

    with quiet_transformers():
        unfuse_qkv(model).to(dtype).save_pretrained(folder, max_shard_size=max_shard_size)
    if processor := processor_file(source):
        (folder / processor.name).write_bytes(processor.read_bytes())


def processor_file(source: str | Path) -> Path | None:
    """The config file of a transformers model's image processor, from its folder or the hub; None if there is none."""
    from huggingface_hub import hf_hub_download

    name = "preprocessor_config.json"
    if Path(source).exists():
        file = Path(source) / name
        return file if file.is_file() else None
    expect_hub(source)
    # depending on its version, the hub client raises errors of requests, httpx or its own
    with contextlib.suppress(Exception):
        return Path(hf_hub_download(str(source), name))
    return None
