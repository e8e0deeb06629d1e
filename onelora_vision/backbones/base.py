"""What a base model is: a network, what its task needs besides, and where the methods act on it."""

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
    """The places of one model that the methods act on, as full module names.

    Attributes:
        target_modules: the Linear layers that get an adapter (the paper: every linear except the classifier).
        norm_modules: normalisation layers that have parameters, for the methods that train norms.
        whole_modules: modules trained whole with every method: a new classification head, DiT's label table.
    """

    target_modules: list[str]
    norm_modules: list[str] = field(default_factory=list)
    whole_modules: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class OwnParts:
    """What `Base.fit` replaces or changes for other data, as it was loaded.

    Attributes:
        modules: copies of `Base.replaced_modules`, by full name.
        config: of the network, with its classes and its range of depths; None where the host keeps none.
        class_names: of the head or label table among the modules.
    """

    modules: dict[str, nn.Module]
    config: Any = None
    class_names: list[str] | None = None


@dataclass(kw_only=True)
class Base(ABC):
    """A base model without adapter. One subclass per family of networks, one row of `backbones.table` for each.

    Attributes:
        model: the network that adapters are attached to.
        source: where it was loaded from: a folder, a file, a hub id or a timm name.
        class_names: the classes that it knows by name, if its task has classes and it names them.
        changed: modules whose values `fit` changed in a way that no option of the host's own loader repeats.
    """

    model: nn.Module
    source: str = ""
    class_names: list[str] | None = None
    changed: tuple[str, ...] = ()
    _fingerprint: str = field(default="", repr=False)

    task: ClassVar[str]
    #: Settings of an adapter (in `AdapterInfo.extra`) that `load` and `fit` take.
    load_settings: ClassVar[tuple[str, ...]] = ()
    #: Others that `load` takes where an adapter is used as it was trained, and not merged or compared.
    use_settings: ClassVar[tuple[str, ...]] = ()
    fit_settings: ClassVar[tuple[str, ...]] = ("fuse_qkv",)

    @property
    @abstractmethod
    def host(self) -> str:
        """The library of the network: ``diffusers``, ``timm`` or ``transformers``."""

    @classmethod
    @abstractmethod
    def load(cls, source: str | Path, **settings: Any) -> Self:
        """Load the network with its weights in fp32.

        Raises:
            InputError: there is no such model, or it is not of this family.
        """

    @classmethod
    @abstractmethod
    def from_config(cls, config: dict, num_classes: int | None = None, fuse_qkv: bool = False) -> Self:
        """Build the network that a ``config.json`` describes, with the weights of its initialisation."""

    def fit(self, class_names: list[str] | None = None, *, seed: int = 0, **settings: Any) -> Self:
        """Make the base fit for a dataset, in place: its classes, its range of depths, its attention; returns it.

        Args:
            class_names: the classes that it is to know, for a task with classes.
            seed: of values that are drawn for new classes.
            settings: those of `fit_settings`, and others that the subclass names.

        Raises:
            InputError: the network cannot be fitted in this way.
        """
        self.fingerprint()  # of what was loaded, before it changes
        self._fit(class_names, seed=seed, **settings)
        return self

    @abstractmethod
    def _fit(self, class_names: list[str] | None, *, seed: int, **settings: Any) -> None: ...

    @abstractmethod
    def adaptation(self) -> Adaptation:
        """Where the methods act on the network."""

    @abstractmethod
    def replaced_modules(self) -> list[str]:
        """Modules that training replaces or trains whole: the label table, the head."""

    def own_parts(self) -> OwnParts:
        """The parts that `fit` will replace or change, to be called before it."""
        modules = {name: copy.deepcopy(self.model.get_submodule(name)) for name in self.replaced_modules()}
        for module in modules.values():
            module.eval().requires_grad_(False)
        return OwnParts(modules, copy.deepcopy(getattr(self.model, "config", None)), self.class_names)

    @contextlib.contextmanager
    def with_own_parts(self, own: OwnParts) -> Iterator[None]:
        """The network with its ``own`` parts again for a block, wherever an adapter has put others; all that has been
        trained outside of these parts stays as it is."""
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
        """Inputs of the network by argument name, the same for every run."""

    def set_length(self, tokens: int) -> None:
        """Let `example` have sequences of this length, for a base that takes text.

        Raises:
            InputError: it takes none, or ``tokens`` is below 1.
        """
        raise InputError(f"--max_length: {type(self.model).__name__} takes no text; leave it out")

    def fingerprint(self) -> str:
        """`fingerprint` of the network as it was loaded, without `replaced_modules`."""
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
        """All networks that the base is made of."""
        return [self.model]

    @property
    def objective(self) -> object | None:
        """What the network was trained to predict, for a task that has several; an adapter's file records ``str`` of it."""
        return None

    @property
    def preprocessing(self) -> dict[str, Any]:
        """How the base makes its inputs from pictures, as JSON has it, where an adapter's file records that."""
        return {}

    @abstractmethod
    def save_merged(self, model: nn.Module, folder: Path, dtype: torch.dtype, max_shard_size: str) -> None:
        """Write ``model``, the network with an adapter merged, into ``folder`` as the host's own class saves it."""

    @property
    def host_class(self) -> str:
        """The host's class whose ``from_pretrained`` loads the network; empty for timm, which has a function."""
        return type(self.model).__name__

    def host_source(self) -> str:
        """What the host's own loader takes for `source`."""
        return self.source

    def host_options(self) -> dict[str, Any]:
        """The other arguments of the loader that give this network, fitted as it is."""
        return {}

    def host_call(self, name: str = "") -> dict[str, Any]:
        """How the host's own library loads this network, as JSON: ``library``, ``class``, ``source`` and ``options``.

        Args:
            name: what to write in place of `source`, for a text that is read on other machines.
        """
        call = {"source": self.host_source(), "options": self.host_options()}
        if name and self.source:
            call = _renamed(call, self.source, name)
        return {"library": self.host, "class": self.host_class, **call}

    def compute_like_host(self, *, with_config: bool) -> None:  # noqa: B027 - optional
        """Compute what the host's own class does with these weights, in place.

        Args:
            with_config: the host will read a config that this network writes, which can keep some differences.
        """

    def host_inputs(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """``inputs`` of the fitted network as the network that was loaded takes them."""
        return inputs


def _renamed(value: Any, old: str, new: str) -> Any:
    """JSON with ``new`` for ``old`` in its strings."""
    if isinstance(value, dict):
        return {key: _renamed(item, old, new) for key, item in value.items()}
    return value.replace(old, new) if isinstance(value, str) else value


def fingerprint(model: nn.Module, exclude: Collection[str] = ()) -> str:
    """A hash that tells base models apart: names, shapes and 16 values of each parameter, rounded to bf16.

    The rounding makes it the same for a base loaded in fp32 or bf16. Take it before adapters are injected, and
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
    """The model's answer as one tensor, whatever its host wraps it in."""
    inputs = dict(inputs)
    output = model(inputs.pop("x"), **inputs) if "x" in inputs else model(**inputs)
    if isinstance(output, Tensor):
        return output
    return next(getattr(output, name) for name in ("sample", "logits", "predicted_depth") if hasattr(output, name))


def norms_with_parameters(model: nn.Module, prefix: str = "") -> list[str]:
    """Names of the normalisation layers under ``prefix`` that own at least one parameter."""
    return [
        name
        for name, module in model.named_modules()
        if name.startswith(prefix)
        and "norm" in type(module).__name__.lower()
        and any(True for _ in module.parameters(recurse=False))
    ]


def enable_gradient_checkpointing(model: nn.Module) -> None:
    """Recompute each block's activations in the backward pass, by the host's own switch.

    Raises:
        InputError: the host has no such switch, or refuses.
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
    """Name of the largest list of at least two modules of one class: a transformer's blocks. None if there is none."""
    lists = {name: list(m) for name, m in model.named_modules() if isinstance(m, (nn.ModuleList, nn.Sequential))}
    alike = {n: blocks for n, blocks in lists.items() if len(blocks) > 1 and len({type(b) for b in blocks}) == 1}
    return max(alike, key=lambda n: sum(p.numel() for b in alike[n] for p in b.parameters()), default=None)


def shared_copy(model: nn.Module) -> nn.Module:
    """A copy of the module tree over the same parameters and buffers."""
    return copy.deepcopy(model, {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]})


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Load or save a transformers model without the library's progress bar and its table of missing and unused weights.

    Whoever loads a model looks at ``output_loading_info``.
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
    """`Base.save_merged` for a transformers model, with the image processor of ``source``, a folder or hub id."""
    from onelora_vision.backbones.fuse import unfuse_qkv

    with quiet_transformers():
        unfuse_qkv(model).to(dtype).save_pretrained(folder, max_shard_size=max_shard_size)
    if processor := processor_file(source):
        (folder / processor.name).write_bytes(processor.read_bytes())


def processor_file(source: str | Path) -> Path | None:
    """The config of a transformers model's image processor: in its folder, or on the hub or its cache. None without one."""
    from huggingface_hub import hf_hub_download

    name = "preprocessor_config.json"
    if Path(source).exists():
        file = Path(source) / name
        return file if file.is_file() else None
    expect_hub(source)
    # the hub client's errors come from requests, httpx and its own tree, depending on its version
    with contextlib.suppress(Exception):
        return Path(hf_hub_download(str(source), name))
    return None
