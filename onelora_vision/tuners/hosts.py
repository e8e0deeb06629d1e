"""Which layers of a host model can be adapted, trained whole, and merged into.

Each question has a table of reasons against it. A reason is a test, which returns what it found at a place in the model
(or an empty string), and the error message for the places where it found something.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import AuxiliaryTrainingWrapper
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from onelora_vision.errors import InputError, listed


@dataclass(frozen=True)
class Place:
    """Where a model holds one of its own modules.

    Attributes:
        name: full name in the model.
        module: the model's own module, inside any adapters and wrappers.
        parent: the module that holds it.
        twins: full names of the other places where the same module is registered.
        tied: full names of other parameters that share a tensor with its weight or bias.
    """

    name: str
    module: nn.Module
    parent: nn.Module | None = None
    twins: Collection[str] = ()
    tied: Collection[str] = ()


def _is_not_linear(place: Place) -> str:
    return "" if isinstance(place.module, nn.Linear) else type(place.module).__name__


def _is_read_by_attention(place: Place) -> str:
    is_read = isinstance(place.parent, nn.MultiheadAttention) and place.name.endswith("out_proj")
    return type(place.parent).__name__ if is_read else ""


def _has_twins(place: Place) -> str:
    return listed(place.twins)


def _is_lazy(place: Place) -> str:
    return type(place.module).__name__ if any(is_lazy(p) for p in place.module.parameters()) else ""


def _is_quantised(place: Place) -> str:
    return listed({kind for p in place.module.parameters() if (kind := _quantised_kind(p))})


def _holds_computed_tensors(place: Place) -> str:
    """Old-style weight_norm and pruning leave non-leaf tensors on the module, which cannot be copied."""
    tensors = (value for module in place.module.modules() for value in vars(module).values())
    return listed({type(t).__name__ for t in tensors if isinstance(t, Tensor) and not t.is_leaf})


def _has_unusable_weight(place: Place) -> str:
    return _unusable(place.module)


def _lacks_values(place: Place) -> str:
    return "" if _is_offloaded(place.module) else _missing(place.module)  # PEFT loads offloaded weights to merge them


def _has_computed_bias(place: Place) -> str:
    module = place.module
    return "bias" if "bias" not in module._parameters and getattr(module, "bias", None) is not None else ""


@torch.no_grad()
def _computes_more(place: Place) -> str:
    """Test a Linear subclass with its own ``forward`` on two inputs; timm's, for one, still computes ``W x + bias``."""
    layer, kind = place.module, type(place.module)
    if kind.forward is nn.Linear.forward or layer.weight.is_meta:
        return ""
    x = torch.arange(2 * layer.weight.shape[1]).sin().view(2, -1).to(layer.weight)
    expected = F.linear(x, layer.weight, layer.bias)
    try:
        error = (kind.forward(layer, x) - expected).abs().max()
    except (RuntimeError, TypeError, ValueError):
        return kind.__name__
    tolerance = 10 * torch.finfo(x.dtype).eps * len(x[0]) ** 0.5
    return "" if error <= tolerance * expected.abs().max() else kind.__name__


def _is_shared(place: Place) -> str:
    return listed({*place.twins, *place.tied})


Reason = tuple[Callable[[Place], str], str]

_AGAINST_ADAPTING: tuple[Reason, ...] = (
    (_is_not_linear, "only Linear layers can be adapted, not {names} ({found})"),
    (
        _is_read_by_attention,
        "cannot adapt {names}: {found} reads the weight and never calls the layer, so an adapter would have no effect; "
        "remove it from target_modules or name it in exclude_modules",
    ),
    (
        _has_twins,
        "cannot adapt {names}: the same module is also registered as {found}, where the adapter would be missing; "
        "name it in exclude_modules, or give each place its own copy",
    ),
    (_is_lazy, "cannot adapt {names}: a {found} has no weight before its first input; run the model once first"),
)

_AGAINST_TRAINING_WHOLE: tuple[Reason, ...] = (
    (
        _is_read_by_attention,
        "cannot train {names} as a whole: {found} reads the weight and never calls the layer; "
        "name the whole attention module in modules_to_save",
    ),
    (
        _has_twins,
        "cannot train {names} as a whole: the same module is also registered as {found}, which would stay frozen; "
        "give each place its own copy, or name a module that holds all of them in modules_to_save",
    ),
    (
        _is_quantised,
        "cannot train {names} as a whole: quantised parameters cannot be trained ({found}); keep this module in full "
        "precision when the base is quantised, or remove it from modules_to_save",
    ),
    (
        _holds_computed_tensors,
        "cannot train {names} as a whole: a weight computed before each call (pruning, old-style weight_norm) cannot be "
        "copied; make it permanent first (torch.nn.utils.prune.remove, torch.nn.utils.remove_weight_norm)",
    ),
)

_AGAINST_MERGING: tuple[Reason, ...] = (
    (_has_unusable_weight, "cannot merge into {names}: the weight {found}"),
    (_lacks_values, "cannot merge into {names}: the weight {found}"),
    (
        _has_computed_bias,
        "cannot merge into {names}: the bias is computed from other tensors (pruning, parametrizations); make it "
        "permanent first",
    ),
    (
        _computes_more,
        "cannot merge into {names}: the forward of {found} is not W x + bias; keep the adapter unmerged",
    ),
    (
        _is_shared,
        "cannot merge into {names}: the weight or bias is tied to {found}, and a merged one cannot be; untie it before "
        "adding the adapter (layer.weight = nn.Parameter(layer.weight.detach().clone()))",
    ),
)


def check_adaptable(model: nn.Module, names: Iterable[str]) -> None:
    """Refuse to adapt one of the modules ``names`` if the adapted model would not compute correctly.

    Raises:
        InputError: names the modules and the reason.
    """
    _refuse(_places(model, names), _AGAINST_ADAPTING)


def adaptable_linears(model: nn.Module) -> list[str]:
    """Full names of all Linear layers that `check_adaptable` accepts."""
    linears = [name for name, module in model.named_modules() if name and isinstance(module, nn.Linear)]
    return [p.name for p in _places(model, linears) if not any(found(p) for found, _ in _AGAINST_ADAPTING)]


def check_trainable_whole(model: nn.Module, names: Iterable[str]) -> None:
    """Refuse to train one of the modules ``names`` whole if its trained copy would not work in its place.

    Raises:
        InputError: names the modules and the reason.
    """
    _refuse(_places(model, names), _AGAINST_TRAINING_WHOLE)


def check_mergeable(model: nn.Module, names: Iterable[str]) -> None:
    """Refuse to merge into the layers ``names`` if the merged model's outputs would differ.

    Raises:
        InputError: names the layers and the reason.
    """
    _refuse(_places(model, names), _AGAINST_MERGING)


def check_layer_mergeable(name: str, layer: nn.Module) -> None:
    """`check_mergeable` for a single layer, ignoring the rest of the model.

    Raises:
        InputError: gives the reason.
    """
    _refuse([Place(name, layer)], _AGAINST_MERGING)


def _refuse(places: Collection[Place], reasons: Iterable[Reason]) -> None:
    for test, message in reasons:
        found = {place.name: what for place in places if (what := test(place))}
        if found:
            raise InputError(message.format(names=listed(found), found=listed(set(found.values()))))


def weight_problem(layer: nn.Module) -> str:
    """Why the weight of a Linear layer cannot be read now, with advice; "" if it can."""
    return _unusable(layer) or _missing(layer)


def _unusable(layer: nn.Module) -> str:
    weight = layer._parameters.get("weight")
    if weight is None:
        return (
            "is computed from other tensors (weight_norm, spectral_norm, pruning); make it permanent first "
            "(torch.nn.utils.parametrize.remove_parametrizations, torch.nn.utils.prune.remove)"
        )
    if kind := _quantised_kind(weight):
        return f"is quantised or sharded ({kind}); load the base in full precision (fp32, bf16 or fp16) for this"
    return ""


def _missing(layer: nn.Module) -> str:
    if not layer._parameters["weight"].is_meta:
        return ""
    if _is_offloaded(layer):
        return "is offloaded; add the adapter before the model is offloaded"
    return "has no values yet (meta device); load the base first"


def _quantised_kind(tensor: Tensor) -> str:
    """What a tensor is ("Int8Params of int8") if it is not a plain floating-point one of at least 16 bits; else ""."""
    is_plain = type(tensor) in (Tensor, nn.Parameter)
    if is_plain and tensor.is_floating_point() and tensor.element_size() >= 2:
        return ""
    dtype = str(tensor.dtype).removeprefix("torch.")
    return dtype if is_plain else f"{type(tensor).__name__} of {dtype}"


def is_plain_linear(module: nn.Module) -> bool:
    """Whether ``module`` just computes ``F.linear(x, weight, bias)``, so that its tensors can be used directly.

    False for quantised, sharded or computed weights, layers with hooks (offloading, FSDP2), and other methods'
    adapters.
    """
    return (
        type(module).forward is nn.Linear.forward
        and "forward" not in module.__dict__
        and not (module._forward_hooks or module._forward_pre_hooks or module._backward_hooks)
        and not module._backward_pre_hooks
        and type(weight := module._parameters.get("weight")) in (Tensor, nn.Parameter)
        and weight.is_floating_point()
        and weight.element_size() >= 2
    )


def device_of(layer: nn.Module) -> torch.device:
    """The device that a layer computes on: its tensors' device, or the one accelerate moves them to for each call."""
    if _is_offloaded(layer) and layer._hf_hook.execution_device is not None:
        return torch.device(layer._hf_hook.execution_device)
    tensors = [*layer.parameters(recurse=False), *layer.parameters(), *layer.buffers()]
    return tensors[0].device if tensors else torch.device("cpu")


def is_empty(layer: nn.Module) -> bool:
    """Whether the layer was created on the meta device and has not been loaded yet."""
    return device_of(layer).type == "meta"


def _is_offloaded(layer: nn.Module) -> bool:
    """Whether accelerate loads the layer's tensors for each call; between calls they are on the meta device."""
    return bool(getattr(getattr(layer, "_hf_hook", None), "offload", False))


def base_of(module: nn.Module) -> nn.Module:
    """The model's own module inside adapters and wrappers."""
    if isinstance(module, AuxiliaryTrainingWrapper):
        return module.original_module
    return module.get_base_layer() if isinstance(module, BaseTunerLayer) else module


def _places(model: nn.Module, names: Iterable[str]) -> list[Place]:
    holders, owners = _by_identity(model, "_modules"), _by_identity(model, "_parameters")
    places = []
    for name in names:
        outer, parent = model.get_submodule(name), model.get_submodule(name.rpartition(".")[0])
        module = base_of(outer)
        twins = {*holders[id(outer)], *holders[id(module)]} - {name}
        tied = {
            owner
            for key in ("weight", "bias")
            if (parameter := module._parameters.get(key)) is not None
            for owner in owners[id(parameter)]
        }
        places.append(Place(name, module, parent, twins, tied - {f"{name}.weight", f"{name}.bias"}))
    return places


def _by_identity(model: nn.Module, kind: str) -> Mapping[int, list[str]]:
    """Full names of all places of each module or parameter; a parent that is itself in two places counts once."""
    found = defaultdict(list)
    for path, module in model.named_modules():
        for key, held in getattr(module, kind).items():
            if held is not None:
                name = f"{path}.{key}" if path else key
                found[id(held)].append(name.replace(".base_layer", "").replace(".original_module", ""))
    return found
