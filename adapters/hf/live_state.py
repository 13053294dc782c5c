"""What a live model is made of, cheap enough to look at in every call: did anything change since it was identified?"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn.modules import module as torch_module

from kvlingua.adapters.hf.forward_counter import ForwardCounter
from kvlingua.common.errors import UnsupportedError

# Code whose forward passes the identity describes. What comes from elsewhere (adapters, quantised layers) may compute
# anything.
_KNOWN_CODE = ("transformers.", "torch.nn.modules.")
# Hooks that only listen: transformers' own, which stay once somebody has asked for hidden states, and ours.
_LISTENING_HOOKS = ("transformers.utils.output_capturing", ForwardCounter.__module__)
_ATTENTION = ("eager", "sdpa")

# Attributes of modules that don't take part in what a forward in evaluation mode computes.
_IGNORED_ATTRIBUTES = frozenset({"training", "gradient_checkpointing", "name_or_path"})

Attributes = tuple[tuple[str, object], ...]


@dataclass(frozen=True)
class LiveState:
    """Two states are equal if every tensor is the same object at the same address, shape, dtype and version, and
    every module has the same class and the same plain attributes (epsilons, scalings), and the configuration says the
    same.

    A write through `.data` changes none of these and is not seen.
    """

    key: tuple[object, ...] = field(repr=False)
    tensors: tuple[torch.Tensor, ...] = field(compare=False, repr=False)
    """Kept alive, so that none of their identities can be taken by another tensor."""

    @classmethod
    def of(cls, model: torch.nn.Module) -> "LiveState":
        named = list(named_tensors(model))
        weights = tuple(
            (name, id(each), each._version, each.data_ptr(), tuple(each.shape), each.stride(), each.dtype)
            for name, each in named
        )
        modules = tuple((name, type(module), plain_attributes(module)) for name, module in model.named_modules())
        config: Any = model.config
        return cls((weights, modules, config.to_json_string(use_diff=False)), tuple(each for _, each in named))


def named_tensors(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """All parameters and buffers, shared ones under each of their names."""
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def plain_attributes(module: torch.nn.Module) -> Attributes:
    """The public attributes of a module that are plain values: numbers, texts, flags, tuples of them."""
    return tuple(
        (name, value)
        for name, value in vars(module).items()
        if not name.startswith("_") and name not in _IGNORED_ATTRIBUTES and _is_plain(value)
    )


def _is_plain(value: object) -> bool:
    if isinstance(value, tuple):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, (bool, int, float, str))


def check_runs_as_described(model: torch.nn.Module) -> None:
    """Raise UnsupportedError if a forward of `model`, here and now, may compute something else than its class,
    configuration and tensors say: hooks, replaced forwards, training mode, autocast, another attention.
    """
    if torch.is_autocast_enabled("cpu"):
        raise UnsupportedError("autocast", "autocast computes in another dtype than the model's")
    if torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks:
        raise UnsupportedError("hooks", "global forward hooks are registered")
    config: Any = model.config
    if config._attn_implementation not in _ATTENTION:
        raise UnsupportedError(
            "attention", f"attention {config._attn_implementation!r}: use one of {', '.join(_ATTENTION)}"
        )
    for name, module in model.named_modules():
        where = name or "the model"
        if module.training or getattr(module, "gradient_checkpointing", False):
            raise UnsupportedError("training", f"{where} is in training mode: call model.eval()")
        if "forward" in vars(module) or getattr(module, "_compiled_call_impl", None) is not None:
            raise UnsupportedError("forward_replaced", f"the forward of {where} is replaced or compiled")
        hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
        if any(getattr(hook, "__module__", "") not in _LISTENING_HOOKS for hook in hooks):
            raise UnsupportedError("hooks", f"{where} has forward hooks")


def check_known_code(model: torch.nn.Module) -> None:
    """Raise UnsupportedError if a module's class, or the forward of its class, is neither transformers' nor
    torch.nn's."""
    for name, module in model.named_modules():
        kind = type(module)
        origins = (kind.__module__, getattr(kind.forward, "__module__", ""))
        if not all(origin.startswith(_KNOWN_CODE) for origin in origins):
            raise UnsupportedError(
                "foreign_module",
                f"{name or 'the model'} is a {kind.__module__}.{kind.__name__}: adapters, quantised "
                "layers and replaced modules are not supported",
            )
    for name, tensor in named_tensors(model):
        if type(tensor) not in (torch.nn.Parameter, torch.Tensor):
            raise UnsupportedError("foreign_tensor", f"{name} is a {type(tensor).__name__}")
        if tensor.device.type != "cpu":
            raise UnsupportedError("device", f"{name} lies on {tensor.device}, only the CPU is supported")
        if tensor.is_inference():
            raise UnsupportedError(
                "inference_tensor", f"{name} was made in inference mode, changes to it can't be seen"
            )
