"""The internals of other packages that we rely on, why, and whether they still are what we rely on.

    python tests/host_internals.py        (or: make host-internals)

Their public interfaces are left to the test suite; listed here is what a minor release may move without a word. Each
check is on the real classes. When one fails, it says what of ours it breaks, and where to mend it. Exit code 1 if any
does: run it on a schedule against the newest releases.
"""

import inspect
import os
import sys
import warnings
from collections.abc import Callable
from importlib.metadata import version
from typing import NamedTuple

os.environ.setdefault("HF_HUB_OFFLINE", "1")


class Reliance(NamedTuple):
    """``check`` raises when ``internal`` of ``host`` is not what ``where`` relies on for ``why``."""

    host: str
    internal: str
    where: str
    why: str
    check: Callable[[], None]


RELIANCES: list[Reliance] = []


def relies_on(host: str, internal: str, where: str, why: str):
    """Enter the decorated check into the list."""

    def enter(check: Callable[[], None]) -> Callable[[], None]:
        RELIANCES.append(Reliance(host, internal, where, why, check))
        return check

    return enter


def has(owner, *names: str) -> None:
    """Raise if ``owner`` lacks one of ``names``."""
    missing = [name for name in names if not hasattr(owner, name)]
    assert not missing, f"{getattr(owner, '__name__', type(owner).__name__)} has no {', '.join(missing)}"


def takes(function, *names: str) -> None:
    """Raise if ``function`` has no parameters ``names``, in this order."""
    found = [name for name in inspect.signature(function).parameters if name in names]
    assert found == list(names), f"{function.__qualname__} takes {inspect.signature(function)}"


@relies_on("peft", "PeftType's member maps", "tuners/registry.py", "our methods are members of that closed enum")
def _peft_type() -> None:
    from peft import PeftType

    import onelora_vision  # noqa: F401 - importing registers the methods

    assert PeftType("ONELORA") is PeftType["ONELORA"] is PeftType.ONELORA, "the enum does not know ONELORA"
    assert PeftType.ONELORA in list(PeftType), "iterating over the enum leaves ONELORA out"


@relies_on(
    "peft", "register_peft_method and its tables", "tuners/registry.py", "PEFT finds our config and tuner there"
)
def _registration() -> None:
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING
    from peft.utils import PeftType, register_peft_method

    from onelora_vision import OneLoraConfig

    takes(register_peft_method, "name", "config_cls", "model_cls")
    assert PEFT_TYPE_TO_CONFIG_MAPPING[PeftType.ONELORA] is OneLoraConfig
    assert PEFT_TYPE_TO_PREFIX_MAPPING[PeftType.ONELORA] == "onelora_"


@relies_on("peft", "BaseTuner's hooks", "tuners/base.py: StrictTuner", "we override them to match names strictly")
def _tuner_hooks() -> None:
    from peft import PeftModel
    from peft.tuners.tuners_utils import BaseTuner

    has(BaseTuner, "_prepare_adapter_config", "delete_adapter", "set_adapter")
    has(PeftModel, "_enable_peft_forward_hooks")
    assert "base_model._enable_peft_forward_hooks" in inspect.getsource(PeftModel._enable_peft_forward_hooks)
    takes(BaseTuner.inject_adapter, "self", "model", "adapter_name")
    takes(BaseTuner._check_target_module_exists, "peft_config", "key")
    takes(BaseTuner._check_tied_modules, "self", "model", "peft_config")
    names = ("self", "peft_config", "adapter_name", "target", "target_name", "parent", "current_key")
    takes(BaseTuner._create_and_replace, *names)
    takes(BaseTuner._replace_module, "self", "parent", "child_name", "new_module", "child")


@relies_on("peft", "matching of names", "tuners/matching.py", "we match by its rules with another engine")
def _matching() -> None:
    from peft.tuners.tuners_utils import _ExcludedModule, check_target_module_exists
    from peft.utils import other

    assert not _ExcludedModule()
    source = inspect.getsource(check_target_module_exists)
    assert r"(?:^|.*?\.){pattern}\.(?P<idx>\d+)\." in source and r".*?\.[^.]*\.(?P<idx>\d+)\." in source
    assert r"(.*\.)?({key})$" in inspect.getsource(other.get_pattern_key)


@relies_on(
    "peft", "merging and all-linear", "tuners/base.py: StrictTuner", "all layers are checked before one changes"
)
def _merging() -> None:
    from peft.tuners import tuners_utils
    from peft.utils import INCLUDE_LINEAR_LAYERS_SHORTHAND

    takes(tuners_utils.BaseTuner.merge_adapter, "self", "adapter_names", "safe_merge")
    names = ("self", "merge", "progressbar", "safe_merge", "adapter_names")
    takes(tuners_utils.BaseTuner._unload_and_optionally_merge, *names)
    takes(tuners_utils._maybe_include_all_linear_layers, "peft_config", "model")
    takes(tuners_utils.onload_layer, "layer")
    assert INCLUDE_LINEAR_LAYERS_SHORTHAND == "all-linear"


@relies_on(
    "peft", "disable_input_dtype_casting", "tuners/base.py: LinearAdapter", "layerwise casting sets a flag on us"
)
def _input_casting() -> None:
    from peft.helpers import disable_input_dtype_casting

    assert "module.cast_input_dtype_enabled = False" in inspect.getsource(disable_input_dtype_casting)


@relies_on(
    "peft", "BaseTuner._remap_adapter_state_dict_for_load", "tuners/base.py: StrictTuner", "loading is strict there"
)
def _loading_hook() -> None:
    from peft.tuners.tuners_utils import BaseTuner
    from peft.utils import set_peft_model_state_dict

    takes(BaseTuner._remap_adapter_state_dict_for_load, "model", "config", "adapter_name", "state_dict")
    source = inspect.getsource(inspect.getmodule(set_peft_model_state_dict))
    assert "_remap_adapter_state_dict_for_load" in source, "loading does not call the hook any more"


@relies_on("peft", "BaseTunerLayer's state", "tuners/base.py: LinearAdapter", "switching, merging and saving use it")
def _layers() -> None:
    from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge

    has(BaseTunerLayer, "adapter_layer_names", "other_param_names", "active_adapters", "disable_adapters", "merged")
    has(BaseTunerLayer, "get_base_layer", "set_adapter", "delete_adapter")
    takes(BaseTunerLayer._move_adapter_to_device_of_base_layer, "self", "adapter_name", "device")
    takes(check_adapters_to_merge, "module", "adapter_names")


@relies_on("peft", "_disable_adapters", "diffusion/guidance.py", "the base guides and is had by this switch")
def _switch() -> None:
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import AuxiliaryTrainingWrapper

    for kind in (BaseTunerLayer, AuxiliaryTrainingWrapper):
        assert "self._disable_adapters" in inspect.getsource(kind.disable_adapters.fget)


@relies_on("peft", "ModulesToSaveWrapper", "tuners/whole.py", "wholly trained modules and mixed batches")
def _whole_modules() -> None:
    from peft.utils import AuxiliaryTrainingWrapper, ModulesToSaveWrapper
    from torch import nn

    assert issubclass(ModulesToSaveWrapper, AuxiliaryTrainingWrapper)
    has(ModulesToSaveWrapper, "_check_forward_args", "_mixed_batch_forward", "init_modules", "update", "set_adapter")
    wrapped = ModulesToSaveWrapper(nn.Linear(2, 2), "default")
    assert "default" in wrapped.modules_to_save and isinstance(wrapped.original_module, nn.Linear)


@relies_on("peft", "small tools", "tuners/base.py, tuners/onelora/config.py", "fixed vectors, targets, vocabularies")
def _small_tools() -> None:
    from peft.tuners._buffer_dict import BufferDict
    from peft.utils.constants import DUMMY_TARGET_MODULES, EMBEDDING_LAYER_NAMES

    has(BufferDict, "_apply", "__getitem__", "items")
    assert isinstance(DUMMY_TARGET_MODULES, str) and EMBEDDING_LAYER_NAMES


def _small_dit():
    from diffusers import DiTTransformer2DModel

    sizes = {"num_attention_heads": 2, "attention_head_dim": 4, "num_layers": 1, "sample_size": 4}
    return DiTTransformer2DModel(**sizes, in_channels=2, out_channels=4, num_embeds_ada_norm=3)


@relies_on(
    "diffusers", "the DiT block", "backbones/dit.py: DiT.forward", "we call it with the conditioning as timestep"
)
def _dit_block() -> None:
    block = _small_dit().transformer_blocks[0]
    names = ["hidden_states", "attention_mask", "encoder_hidden_states", "encoder_attention_mask", "timestep"]
    names += ["cross_attention_kwargs", "class_labels"]
    found = list(inspect.signature(block.forward).parameters)[: len(names)]
    assert found == names, f"its arguments are now {found}"
    has(block.attn1, "to_q", "to_k", "to_v", "to_out", "set_processor")
    has(block, "norm1", "norm3", "ff")


@relies_on(
    "diffusers", "AdaLayerNormZero", "backbones/dit.py: SharedAdaLayerNormZero", "one embedder serves all blocks"
)
def _conditioning() -> None:
    import torch

    norm = _small_dit().transformer_blocks[0].norm1
    has(norm, "emb", "silu", "linear", "norm")
    has(norm.emb, "time_proj", "timestep_embedder", "class_embedder")
    has(norm.emb.time_proj, "downscale_freq_shift")
    has(norm.emb.class_embedder, "dropout_prob", "num_classes", "embedding_table")
    conditioning = torch.zeros(1, 8)
    norm.emb = None
    assert len(norm(torch.zeros(1, 4, 8), emb=conditioning)) == 5, "it does not take a ready embedding any more"


@relies_on("diffusers", "DiTTransformer2DModel's parts", "backbones/dit.py", "our forward is written with them")
def _dit_parts() -> None:
    model = _small_dit()
    has(model, "pos_embed", "transformer_blocks", "norm_out", "proj_out_1", "proj_out_2", "patch_size", "out_channels")
    has(model, "gradient_checkpointing", "register_to_config", "inner_dim")
    has(type(model), "_set_gradient_checkpointing", "enable_gradient_checkpointing")


@relies_on(
    "diffusers",
    "FlowMatchEulerDiscreteScheduler's config",
    "diffusion/flow.py",
    "it marks a base that predicts velocity",
)
def _flow_match() -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler

    config = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1, invert_sigmas=True).config
    assert config["invert_sigmas"] is True and config["num_train_timesteps"] == 1
    assert config["shift"] == 1 and not config["use_dynamic_shifting"]


@relies_on(
    "diffusers", "calls on adapted layers", "tuners/base.py: LinearAdapter", "adapter weights through pipelines"
)
def _diffusers_scales() -> None:
    from diffusers.utils import peft_utils

    source = inspect.getsource(peft_utils)
    for name in ("scale_layer", "unscale_layer", "set_scale"):
        assert f".{name}(" in source, f"diffusers does not call {name} any more"


@relies_on("timm", "attention's one qkv", "backbones/vit.py, methods", "the linears of a ViT that are adapted")
def _timm() -> None:
    import timm
    from torch import nn

    sizes = {"img_size": 16, "patch_size": 8, "embed_dim": 8, "depth": 1, "num_heads": 2, "num_classes": 2}
    model = timm.create_model("vit_tiny_patch16_224", pretrained=False, **sizes)
    block = model.blocks[0]
    for layer in (block.attn.qkv, block.attn.proj, block.mlp.fc1, block.mlp.fc2, model.head):
        assert isinstance(layer, nn.Linear), f"{type(layer).__name__} is no Linear"
    has(model, "pretrained_cfg", "set_grad_checkpointing")
    takes(timm.models.load_checkpoint, "model", "checkpoint_path")


@relies_on(
    "transformers", "ViT's and Dinov2's attention", "backbones/fuse.py: FusedAttention", "q, k, v become one linear"
)
def _attention() -> None:
    from transformers import Dinov2Config, ViTConfig
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
    from transformers.models.dinov2.modeling_dinov2 import Dinov2Attention
    from transformers.models.vit.modeling_vit import ViTAttention, eager_attention_forward

    from onelora_vision.backbones.fuse import _SHARED

    for kind, config in ((ViTAttention, ViTConfig), (Dinov2Attention, Dinov2Config)):
        attention = kind(config(hidden_size=8, num_attention_heads=2))
        has(attention, "q_proj", "k_proj", "v_proj", "o_proj", *_SHARED)
    has(ALL_ATTENTION_FUNCTIONS, "get_interface")
    takes(eager_attention_forward, "module", "query", "key", "value", "attention_mask", "scaling", "dropout")


@relies_on(
    "transformers",
    "the mask of packed sequences",
    "data/text/packing.py: PackedDataset",
    "rows of one sequence are told apart by their positions",
)
def _packed_rows() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    from onelora_vision.backbones.language import LanguageBase

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    LanguageBase(model=LlamaForCausalLM(LlamaConfig(vocab_size=32, **sizes)).eval()).require_packing()


@relies_on(
    "transformers",
    "defaults of a generation",
    "backbones/language.py: continue_tokens",
    "what a generation leaves open comes from the model's generation_config, which is lent a plain one",
)
def _generation_defaults() -> None:
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=32, **sizes)).eval()
    model.generation_config = GenerationConfig(suppress_tokens=[*range(31)])
    asked = {"input_ids": torch.tensor([[3, 4]]), "generation_config": GenerationConfig(max_new_tokens=1)}
    assert model.generate(**asked)[0, -1] == 31
    model.generation_config = GenerationConfig()
    assert model.generate(**asked)[0, -1] == model(asked["input_ids"]).logits[0, -1].argmax()


@relies_on(
    "transformers", "Depth Anything's head", "backbones/depth_anything.py: set_max_depth", "its range is changed"
)
def _depth_head() -> None:
    from torch import nn
    from transformers import DepthAnythingConfig
    from transformers.models.depth_anything.modeling_depth_anything import DepthAnythingDepthEstimationHead

    config = DepthAnythingConfig(fusion_hidden_size=4, head_hidden_size=2, depth_estimation_type="metric", max_depth=9)
    head = DepthAnythingDepthEstimationHead(config)
    assert head.max_depth == 9 and isinstance(head.activation2, nn.Sigmoid) and isinstance(head.conv3, nn.Conv2d)
    assert "* self.max_depth" in inspect.getsource(type(head).forward), "the range is applied elsewhere now"


@relies_on(
    "accelerate", "the prepared optimizer and the scaler", "training/step.py", "skipped fp16 steps are told by them"
)
def _accelerate() -> None:
    from accelerate import Accelerator
    from accelerate.optimizer import AcceleratedOptimizer
    from accelerate.utils import GradientAccumulationPlugin, concatenate, recursively_apply

    has(AcceleratedOptimizer, "step_was_skipped")
    assert "self.scaler" in inspect.getsource(Accelerator.__init__)
    takes(GradientAccumulationPlugin, "num_steps", "sync_with_dataloader")
    takes(recursively_apply, "func", "data"), takes(concatenate, "data")


@relies_on("accelerate", "the offloading hook", "tuners/hosts.py", "weights on the meta device may be elsewhere")
def _offloading() -> None:
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module
    from torch import nn

    layer = add_hook_to_module(nn.Linear(2, 2), AlignDevicesHook(execution_device="cpu", offload=True))
    assert layer._hf_hook.offload and layer._hf_hook.execution_device == "cpu" and layer.weight.is_meta


@relies_on("torch", "fast paths past a layer", "tuners/hosts.py", "they are refused, or turned off by a forward hook")
def _fast_paths() -> None:
    from torch import nn

    assert "out_proj.weight" in (source := inspect.getsource(nn.MultiheadAttention.forward))
    assert "self.out_proj(" not in source, "attention calls its output layer now: it can be adapted"
    layer = inspect.getsource(nn.TransformerEncoderLayer.forward)
    assert "_forward_pre_hooks" in layer and "self.modules()" in layer
    assert "self.use_nested_tensor" in inspect.getsource(nn.TransformerEncoder.forward)


@relies_on(
    "torch", "DDP's list of parameters to ignore", "training/sharding.py", "DDP must let frozen weights be freed"
)
def _ddp_ignores() -> None:
    from torch import nn
    from torch.nn.parallel import DistributedDataParallel

    model = nn.Linear(2, 2)
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, ["weight"])
    assert model._ddp_params_and_buffers_to_ignore == ["weight"]
    assert "_ddp_params_and_buffers_to_ignore" in inspect.getsource(DistributedDataParallel.__init__)


@relies_on("torch", "the loader's handler of SIGCHLD", "data/stream.py", "it must not raise at whatever line runs")
def _child_handler() -> None:
    from torch.utils.data._utils import signal_handling

    source = inspect.getsource(signal_handling._set_SIGCHLD_handler)
    assert "if _SIGCHLD_handler_set:" in source.replace("global _SIGCHLD_handler_set", "")


@relies_on("timm", "the switch of qkv's bias", "tuners/hosts.py", "BEiT, EVA and Swin-V2 then call the adapted layer")
def _separate_bias() -> None:
    from timm.models import beit, eva, swin_transformer_v2

    for attention in (beit.Attention, eva.EvaAttention, swin_transformer_v2.WindowAttention):
        source = inspect.getsource(attention.forward)
        assert "self.qkv_bias_separate" in source and "self.qkv(x)" in source, attention.__module__


@relies_on(
    "huggingface_hub", "the switch to offline", "hub.py", "its cache then answers without being asked six times"
)
def _offline() -> None:
    from huggingface_hub import constants

    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        assert constants.is_offline_mode()
    finally:
        constants.HF_HUB_OFFLINE = before


def main() -> int:
    """Print each reliance with its state; 1 if any check failed."""
    warnings.simplefilter("ignore")
    print(", ".join(f"{host} {version(host)}" for host in dict.fromkeys(r.host for r in RELIANCES)))
    moved = 0
    for reliance in RELIANCES:
        try:
            reliance.check()
        except Exception as error:  # whatever a check meets is what the next release did
            moved += 1
            print(f"MOVED  {reliance.host}: {reliance.internal}: {error or type(error).__name__}")
            print(f"       we rely on it because {reliance.why}; mend onelora_vision/{reliance.where}")
        else:
            print(f"ok     {reliance.host}: {reliance.internal} ({reliance.where})")
    return 1 if moved else 0


if __name__ == "__main__":
    sys.exit(main())
