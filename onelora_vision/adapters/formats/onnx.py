"""The network with the adapter merged, as an ONNX graph for any number of images and, for depth, of any size.

PyTorch's exporter makes it, in the opset of its choice, from the network as this package computes it. Inputs and
outputs are fp32, whatever the type of the weights. The file's metadata holds what a program needs to use it.
"""

import contextlib
import json
import logging
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim

from onelora_vision.adapters.formats.job import TORCH_DTYPES, Job, Written
from onelora_vision.adapters.formats.merged import merge
from onelora_vision.backbones.base import Base, output_of
from onelora_vision.errors import InputError, one_line

MODEL_FILE = "model.onnx"
_LARGEST = 1 << 30  # bytes of weights in the file itself; more go into a second file, as protobuf is limited to 2 GiB
_PATCHES = (
    10,
    7,
)  # of the rectangle that a graph for any image size is exported with
_OTHER_PATCHES = (5, 8)  # of the rectangle that it is tested with


@torch.no_grad()
def write(job: Job, folder: Path) -> Written:
    """Merge, export and save.

    Raises:
        InputError: the network has operations that the exporter or ONNX does not know.
    """
    model, written = merge(job)
    any_size = takes_any_size(job.base)
    inputs, others = _inputs(job.base, any_size), _other_inputs(job.base, any_size)
    others = tuple((given, output_of(model, given)) for given in others)
    graph = _Graph(model, list(inputs), TORCH_DTYPES[job.dtype]).eval()
    try:
        with _quiet(), symbolic_sizes(model):
            program = torch.onnx.export(
                graph,
                tuple(inputs.values()),
                dynamo=True,
                verbose=False,
                input_names=list(inputs),
                output_names=["output"],
                dynamic_shapes={"values": tuple(_free_axes(job.base, value, any_size) for value in inputs.values())},
            )
    # The exporter's error may have any kind of cause, from torch.export or from the translation of the graph.
    except Exception as error:
        reason = one_line(error.__cause__ or error, 300)
        raise InputError(f"{job.adapter.path}: PyTorch cannot export this network to ONNX ({reason})") from error
    program.model.metadata_props.update(_metadata(job))
    size = sum(parameter.nbytes for parameter in graph.parameters())
    program.save(str(folder / MODEL_FILE), external_data=size > _LARGEST)
    return written._replace(file=MODEL_FILE, others=others)


class _Graph(nn.Module):
    """The network with positional inputs and a single output tensor, all fp32."""

    def __init__(self, model: nn.Module, names: Sequence[str], dtype: torch.dtype):
        super().__init__()
        self.model, self.names, self.dtype = nn.Module.to(model, dtype), names, dtype  # the hosts' own `to` warns

    def forward(self, *values: Tensor) -> Tensor:
        cast = (value.to(self.dtype) if value.is_floating_point() else value for value in values)
        return output_of(self.model, dict(zip(self.names, cast))).float()


def takes_any_size(base: Base) -> bool:
    """Whether the network takes rectangular images with any number of patches."""
    if base.task != "depth":
        return False
    try:
        base.resolution("x".join(str(count * base.patch_size) for count in _PATCHES))
    except InputError:
        return False
    return True


def _inputs(base: Base, any_size: bool) -> dict[str, Tensor]:
    """Two samples, as the exporter treats a size of 1 as a constant. For ``any_size``, they are rectangular."""
    inputs = base.example(2)
    return {name: _of_size(value, base, _PATCHES) for name, value in inputs.items()} if any_size else inputs


def _other_inputs(base: Base, any_size: bool) -> list[dict[str, Tensor]]:
    """Inputs for testing the graph: a single sample and, for ``any_size``, images of another size."""
    others = [base.example(1, seed=1)]
    if any_size:
        others.append({name: _of_size(value, base, _OTHER_PATCHES) for name, value in base.example(2).items()})
    return others


def _of_size(images: Tensor, base: Base, patches: tuple[int, int]) -> Tensor:
    height, width = (count * base.patch_size for count in patches)
    return torch.randn(len(images), 3, height, width, generator=torch.Generator().manual_seed(2))


def _free_axes(base: Base, value: Tensor, any_size: bool) -> dict[int, Dim]:
    axes = {0: Dim("batch")}
    if any_size and value.ndim == 4:
        axes |= {2: base.patch_size * Dim("rows"), 3: base.patch_size * Dim("columns")}
    return axes


def _metadata(job: Job) -> dict[str, str]:
    info, base = job.adapter.info, job.base
    facts = {"task": info.task, "base": info.base, "method": info.method}
    if info.class_names:
        facts["class_names"] = json.dumps(info.class_names, ensure_ascii=False)
    preprocessing = dict(base.preprocessing)
    if base.task == "depth":
        preprocessing |= {"mean": base.mean, "std": base.std, "multiple": base.patch_size}
        if base.max_depth is not None:
            facts["max_depth"] = str(base.max_depth)
    if base.objective is not None:
        facts["objective"] = str(base.objective)
    return facts | {"preprocessing": json.dumps(preprocessing)}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence warnings from inside the exporter, which users can do nothing about."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels):
            logger.setLevel(level)


class _AnyInt(type):
    def __instancecheck__(cls, value: object) -> bool:
        return isinstance(value, int)


class _SymbolicInt(metaclass=_AnyInt):
    """An ``int`` that leaves symbolic sizes unchanged."""

    def __new__(cls, value=0, *args):
        return value if isinstance(value, torch.SymInt) else int(value, *args)


@contextlib.contextmanager
def symbolic_sizes(model: nn.Module) -> Iterator[None]:
    """Context manager in which ``int(size)`` in transformers' models does not turn a dynamic size into a constant."""
    names = {type(module).__module__ for module in model.modules()}
    modules = [sys.modules[name] for name in names if name.startswith("transformers.")]
    modules = [module for module in modules if "int" not in vars(module)]
    for module in modules:
        module.int = _SymbolicInt
    try:
        yield
    finally:
        for module in modules:
            del module.int
