"""The weights of a live model against the files they were loaded from, and their own hash where they differ."""

import contextlib
import copy
import hashlib
import inspect
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from kvlingua.adapters.hf.live_state import named_tensors, plain_attributes

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def differing_tensor(model: torch.nn.Module, files: Mapping[str, Path]) -> str | None:
    """The name of the first parameter or buffer that isn't, to the bit, what its file says after a cast to its dtype;
    None if all are.

    files: the weight files by name. Buffers that no file holds are compared with those of a module that is built anew
    from the model's configuration. A tensor that can't be found, or rebuilt, differs.
    """
    saved = set(model.state_dict(keep_vars=True))
    owners: dict[int, tuple[torch.Tensor, list[str]]] = {}
    for name, tensor in named_tensors(model):
        if name in saved:
            owners.setdefault(id(tensor), (tensor, []))[1].append(name)
        elif not _equals_rebuilt(model, name, tensor):
            return name
    prefix = getattr(model, "base_model_prefix", "") + "."
    with contextlib.ExitStack() as stack:
        index: dict[str, Any] = {}
        for path in files.values():
            if path.suffix != ".safetensors":
                return next(iter(saved))
            handle = stack.enter_context(safe_open(path, framework="pt"))
            for key in list(handle.keys()):  # not iterable itself
                if key in index:
                    return str(key)
                index[key] = handle
        for tensor, names in owners.values():
            aliases = [alias for name in names for alias in (name, name.removeprefix(prefix), prefix + name)]
            found = [alias for alias in dict.fromkeys(aliases) if alias in index]
            loaded = (index[alias].get_tensor(alias).to(tensor.dtype) for alias in found)
            if not found or not all(_same_bits(each, tensor) for each in loaded):
                return names[0]
    return None


def differing_attributes(model: Any) -> dict[str, object]:
    """Plain attributes of modules (epsilons, scalings, ...) that are not what the model's class makes of the model's
    configuration, by `module.attribute`; of modules that it doesn't make or makes otherwise, the class.
    """
    with torch.device("meta"):
        expected = dict(type(model)(copy.deepcopy(model.config)).named_modules())
    differences: dict[str, object] = {}
    for name, module in model.named_modules():
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
    """`memory:` and the sha256 over name, dtype, shape and bytes of all parameters and buffers, sorted by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(named_tensors(model), key=lambda item: item[0]):
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


def _equals_rebuilt(model: torch.nn.Module, name: str, tensor: torch.Tensor) -> bool:
    owner, _, buffer = name.rpartition(".")
    for rebuilt in _rebuilt(model.get_submodule(owner), model):
        value = getattr(rebuilt, buffer, None)
        return isinstance(value, torch.Tensor) and _same_bits(value, tensor)
    return False


def _rebuilt(module: torch.nn.Module, model: Any) -> Iterator[torch.nn.Module]:
    """The module built anew, if its class needs no more than a configuration and a layer's number."""
    known = {"config": copy.deepcopy(model.config), "layer_idx": getattr(module, "layer_idx", None)}
    needed = [
        name
        for name, parameter in inspect.signature(type(module)).parameters.items()
        if parameter.default is parameter.empty
    ]
    if all(name in known for name in needed):
        yield type(module)(**{name: known[name] for name in needed})
