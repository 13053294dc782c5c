"""What a live model is made of, cheap enough to look at in every call: did anything change since it was identified?"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch.nn.modules import module as torch_module
from transformers import PretrainedConfig, PreTrainedModel

from kvlingua.adapters.hf.forward_counter import ForwardCounter
from kvlingua.adapters.hf.lora import LAYER_CODE, adapter_state, is_lora, lora_layers, merged_state, without_adapters
from kvlingua.common.errors import UnsupportedError

# Code whose forward passes the identity describes. What comes from elsewhere (adapters, quantised layers) may compute
# anything.
_KNOWN_CODE = ("transformers.", "torch.nn.modules.")
_NO_GRAD = "torch.utils._contextlib"  # the wrapper that torch.no_grad() makes
# Hooks that only listen: transformers' own, which stay once somebody has asked for hidden states, and ours.
_LISTENING_HOOKS = ("transformers.utils.output_capturing", ForwardCounter.__module__)
_ATTENTION = ("eager", "sdpa")
DEVICES = ("cpu", "cuda")  # torch calls AMD's GPUs by that name, too

# Attributes of modules that don't take part in what a forward in evaluation mode computes, and torch's own.
_TORCH_ATTRIBUTES = frozenset(vars(torch.nn.Module()))
_IGNORED_ATTRIBUTES = _TORCH_ATTRIBUTES | {"gradient_checkpointing", "name_or_path"}

# The methods through which transformers generates; `identity` wants them to be its own.
GENERATION_METHODS = ("generate", "prepare_inputs_for_generation", "_sample", "_beam_search", "_prefill")

Attributes = tuple[tuple[str, object], ...]


@dataclass(frozen=True)
class LiveState:
    """Two states are equal if every tensor is the same object at the same address, shape, dtype and version, and
    every module has the same class, the class the same forward, and the module the same plain attributes (epsilons,
    scalings), and the configuration says the same; and the same LoRA adapters act as strongly.

    model: all but the adapters, and which of these are merged into the weights. adapters: those that aren't.
    A write through `.data` changes none of these and is not seen, merging adapters aside.
    """

    model: tuple[object, ...] = field(repr=False)
    adapters: tuple[object, ...] = field(repr=False)
    tensors: tuple[torch.Tensor, ...] = field(compare=False, repr=False)
    """Kept alive, so that none of their identities can be taken by another tensor."""

    @classmethod
    def of(cls, model: torch.nn.Module) -> "LiveState":
        """Raises UnsupportedError for LoRA layers that aren't plain."""
        layers = lora_layers(model)
        tensors = tuple(base_tensors(model))
        matrices = tuple(
            (f"{name}.{key}", tensor)
            for name, layer in layers
            for key, tensor in named_tensors(layer)
            if not key.startswith("base_layer.")
        )
        modules = tuple(
            (name, type(module), type(module).forward, plain_attributes(module))
            for name, module in without_adapters(model)
        )
        methods = tuple(getattr(type(model), name, None) for name in GENERATION_METHODS)
        config = getattr(model, "config", None)
        text = config.to_json_string(use_diff=False) if isinstance(config, PretrainedConfig) else None
        return cls(
            (_identities(tensors), modules, methods, text, merged_state(layers)),
            (_identities(matrices), adapter_state(layers)),
            tuple(each for _, each in tensors + matrices),
        )


def _identities(tensors: tuple[tuple[str, torch.Tensor], ...]) -> tuple[object, ...]:
    return tuple(
        (name, id(each), _version(each), each.data_ptr(), each.shape, each.stride(), each.dtype)
        for name, each in tensors
    )


def base_tensors(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """All parameters and buffers, shared ones under each of their names, as if there were no adapters."""
    for name, module in without_adapters(model):
        prefix = f"{name}." if name else ""
        for key, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None:
                yield prefix + key, tensor


def named_modules(model: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Module]]:
    """The model and all modules in it, under each of their names: `Module.named_modules`, but fit for every call."""
    pending = [("", model)]
    while pending:
        name, module = pending.pop()
        yield name, module
        prefix = f"{name}." if name else ""
        pending += [(prefix + key, child) for key, child in module._modules.items() if child is not None]


def named_tensors(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """All parameters and buffers, those of adapters too."""
    for name, module in named_modules(model):
        prefix = f"{name}." if name else ""
        for key, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None:
                yield prefix + key, tensor


def _version(tensor: torch.Tensor) -> int | None:
    """How often torch wrote to it. Not counted for inference tensors, which `check_known_code` refuses."""
    return None if tensor.is_inference() else tensor._version


def plain_attributes(module: torch.nn.Module) -> Attributes:
    """The public attributes of a module that are plain values: numbers, texts, flags, tuples of them."""
    return tuple(
        (name, value)
        for name, value in vars(module).items()
        if name not in _IGNORED_ATTRIBUTES and name[0] != "_" and _is_plain(value)
    )


def _is_plain(value: object) -> bool:
    if isinstance(value, tuple):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, (bool, int, float, str))


def check_runs_as_described(model: torch.nn.Module) -> None:
    """Raise UnsupportedError if a forward of `model`, here and now, may compute something else than its class,
    configuration and tensors say: hooks, replaced methods, training mode, autocast, another attention.

    `generate` of the model itself may be replaced: what stands there calls ours, or isn't seen by it.
    """
    if torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda"):
        raise UnsupportedError("autocast", "autocast computes in another dtype than the model's")
    on_gpu = getattr(getattr(model, "device", None), "type", "cpu") == "cuda"
    if on_gpu and _tf32():
        raise UnsupportedError("tf32", "TF32 is allowed: float32 would be computed with 10 bits of mantissa on a GPU")
    if not on_gpu and _short_products():
        raise UnsupportedError(
            "fp32_precision",
            "products of float32 may be computed with fewer bits on a CPU that can: "
            "torch.set_float32_matmul_precision('highest')",
        )
    if torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks:
        raise UnsupportedError("hooks", "global forward hooks are registered")
    attention = getattr(getattr(model, "config", None), "_attn_implementation", None)
    if attention not in _ATTENTION and isinstance(model, PreTrainedModel):
        raise UnsupportedError("attention", f"attention {attention!r}: use {' or '.join(_ATTENTION)}")
    if attention == "sdpa" and not getattr(model, "_supports_sdpa", True):
        raise UnsupportedError("attention", "this model's attention isn't what sdpa computes: use eager")
    allowed: tuple[str, ...] = ("generate",)  # of the first one, which is the model itself
    for name, module in named_modules(model):
        where, attributes = name or "the model", vars(module)
        if module.training or attributes.get("gradient_checkpointing"):
            raise UnsupportedError("training", f"{where} is in training mode: call model.eval()")
        for attribute in attributes.keys() - _TORCH_ATTRIBUTES:
            if callable(attributes[attribute]) and hasattr(type(module), attribute) and attribute not in allowed:
                raise UnsupportedError("method_replaced", f"{attribute} of {where} is replaced or compiled")
        allowed = ()
        hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
        if any(getattr(hook, "__module__", "") not in _LISTENING_HOOKS for hook in hooks):
            raise UnsupportedError("hooks", f"{where} has forward hooks")


def _short_products() -> bool:
    """Whether oneDNN may compute products of float32 in bfloat16 or TF32."""
    matmul = getattr(torch.backends.mkldnn, "matmul", None)
    return getattr(matmul, "fp32_precision", "none") not in ("ieee", "none")


def _tf32() -> bool:
    """Whether products of float32 may be computed in TF32 on a GPU. It counts for models of other types, too: many of
    them route, or normalise, in float32."""
    matmul = torch.backends.cuda.matmul
    # Once anybody has used torch's newer switch, the older one can't be read any more.
    precision = getattr(matmul, "fp32_precision", None)
    return bool(matmul.allow_tf32) if precision is None else precision not in ("ieee", "none")


def foreign_origin(function: object) -> str | None:
    """The module of code that runs when `function` is called, what it says it wraps included, and that is neither
    transformers' nor torch.nn's; None if there is none. Told by the code: `functools.wraps` copies a `__module__`."""
    while function is not None:
        origin = str(getattr(function, "__globals__", {}).get("__name__", "unknown"))
        wrapped = getattr(function, "__wrapped__", None)
        if not origin.startswith(_KNOWN_CODE) and not (origin == _NO_GRAD and wrapped is not None):
            return origin
        function = wrapped
    return None


def check_known_code(model: torch.nn.Module) -> None:
    """Raise UnsupportedError if a module's class, or the forward of its class, is neither transformers' nor
    torch.nn's, nor PEFT's LoRA."""
    for name, module in named_modules(model):
        kind = type(module)
        foreign = foreign_origin(kind.forward) if kind.__module__.startswith(_KNOWN_CODE) else kind.__module__
        if is_lora(module) and foreign_origin(kind.forward) == LAYER_CODE:
            continue
        if foreign is not None:
            raise UnsupportedError(
                "foreign_module",
                f"{name or 'the model'} is a {kind.__name__} with code of {foreign}: adapters other than LoRA, "
                "quantised layers and replaced modules are not supported",
            )
    device: torch.device | None = None
    for name, tensor in named_tensors(model):
        if type(tensor) not in (torch.nn.Parameter, torch.Tensor):
            raise UnsupportedError("foreign_tensor", f"{name} is a {type(tensor).__name__}")
        device = device or tensor.device
        if tensor.device != device or device.type not in DEVICES:
            raise UnsupportedError("device", f"{name} lies on {tensor.device}: the CPU, or one GPU, must hold all")
        if tensor.is_inference():
            raise UnsupportedError(
                "inference_tensor", f"{name} was made in inference mode, changes to it can't be seen"
            )
