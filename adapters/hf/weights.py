"""The weights of a live model against the files they were loaded from, and their own hash where they differ."""

import contextlib
import copy
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch.overrides import TorchFunctionMode
from transformers.core_model_loading import revert_weight_conversion

from kvlingua.adapters.hf.live_state import base_tensors, named_tensors, plain_attributes
from kvlingua.adapters.hf.lora import without_adapters

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class _SmallTensors(TorchFunctionMode):
    """Makes room for weights on the meta device only: a model is built in no time, with its buffers computed."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in (torch.empty, torch.rand, torch.randn):
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


def expected_model(model: Any) -> torch.nn.Module:
    """What the model's class makes of the model's configuration: modules, attributes and computed buffers; no
    weights."""
    with _SmallTensors():
        built: torch.nn.Module = type(model)(copy.deepcopy(model.config))
    return built


def differing_tensor(model: Any, expected: torch.nn.Module, files: Mapping[str, Path]) -> str | None:
    """The name of the first parameter or buffer that isn't, to the bit, what its file says after a cast to its dtype;
    None if all are. Adapters don't count.

    files: the weight files by name. What transformers joins while it loads (experts) is taken apart as it does that
    for saving. Buffers that no file holds are compared with those of `expected`. A tensor that
    can't be found, or was not computed there, differs.
    """
    saved = {name.replace(".base_layer.", ".") for name in model.state_dict(keep_vars=True)}
    computed = dict(named_tensors(expected))
    owners: dict[int, tuple[torch.Tensor, list[str]]] = {}
    for name, tensor in base_tensors(model):
        if name in saved:
            owners.setdefault(id(tensor), (tensor, []))[1].append(name)
        elif name not in computed or not _same_bits(computed[name], tensor):
            return name
    prefix = getattr(model, "base_model_prefix", "") + "."
    with contextlib.ExitStack() as stack:
        index: dict[str, Any] = {}
        for path in files.values():
            if path.suffix != ".safetensors":
                return str(next(iter(saved)))
            handle = stack.enter_context(safe_open(path, framework="pt"))
            for key in list(handle.keys()):  # not iterable itself
                if key in index:
                    return str(key)
                index[key] = handle

        def is_saved(alias: str, tensor: torch.Tensor) -> bool:
            return _same_bits(index[alias].get_tensor(alias).to(tensor.dtype), tensor)

        joined: dict[str, torch.Tensor] = {}
        for tensor, names in owners.values():
            aliases = [alias for name in names for alias in (name, name.removeprefix(prefix), prefix + name)]
            found = [alias for alias in dict.fromkeys(aliases) if alias in index]
            if not found:
                joined[names[0]] = tensor
            elif not all(is_saved(alias, tensor) for alias in found):
                return names[0]
        for name, tensor in joined.items():  # one after the other: each may be large, and is taken apart into copies
            parts = revert_weight_conversion(model, {name: tensor.detach()})
            if sum(part.numel() for part in parts.values()) != tensor.numel():
                return str(name)
            if not all(alias in index and is_saved(alias, part) for alias, part in parts.items()):
                return name
    return None


def differing_attributes(model: Any, built: torch.nn.Module) -> dict[str, object]:
    """Plain attributes of modules (epsilons, scalings, ...) that are not those of the model as it is `built` anew, by
    `module.attribute`; of modules that it doesn't have or has of another class, the class. Adapters don't count.
    """
    expected = dict(built.named_modules())
    differences: dict[str, object] = {}
    for name, module in without_adapters(model):
        wanted = expected.pop(name, None)
        if type(wanted) is not type(module):
            differences[name] = type(module).__qualname__
            continue
        here, there = dict(plain_attributes(module)), dict(plain_attributes(wanted))
        for attribute in here.keys() | there.keys():
            if here.get(attribute) != there.get(attribute):
                differences[f"{name}.{attribute}"] = here.get(attribute)
    return differences | dict.fromkeys(expected, "absent")


def memory_fingerprint(model: torch.nn.Module) -> str:
    """`memory:` and the sha256 over name, dtype, shape and bytes of all parameters and buffers, sorted by name;
    without adapters."""
    digest = hashlib.sha256()
    for name, tensor in sorted(base_tensors(model), key=lambda item: item[0]):
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        if tensor.numel():
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return f"memory:{digest.hexdigest()}"


def _same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    one, other = one.detach().cpu(), other.detach().cpu()
    integer = _INTEGERS.get(one.element_size())
    if integer is None or one.is_complex():
        return False
    return torch.equal(one.contiguous().view(integer), other.contiguous().view(integer))
