"""LoRA adapters that PEFT has put into a model: what they do to a forward, as a digest, and the model without them."""

import hashlib
from collections.abc import Iterator
from typing import Any

import torch

from kvlingua.common.errors import UnsupportedError
from kvlingua.common.identity.lora_digest import Matrix, digest_of

LAYER_CODE = "peft.tuners.lora.layer"
_DTYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
# What of a plain LoRA layer is empty, or false for each adapter: everything else computes more than B(A(x)).
_EMPTY = ("lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector", "lora_variant")
_FALSE = ("lora_bias", "use_dora")


def is_lora(module: torch.nn.Module) -> bool:
    """Whether it is PEFT's own LoRA around a linear layer."""
    kind = type(module)
    return (kind.__module__, kind.__qualname__) == (LAYER_CODE, "Linear")


def without_adapters(model: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Module]]:
    """All modules of the model under their names, as if no adapter had been put into it."""
    pending: list[tuple[str, torch.nn.Module]] = [("", model)]
    while pending:
        name, module = pending.pop()
        while is_lora(module):
            module = module._modules["base_layer"]  # type: ignore[assignment]
        yield name, module
        prefix = f"{name}." if name else ""
        pending += [(prefix + key, child) for key, child in module._modules.items() if child is not None]


def lora_layers(model: torch.nn.Module) -> list[tuple[str, Any]]:
    """The LoRA layers, by the names that the layers in them have in the model, in the order of these.

    Raises UnsupportedError for any that is more than plain.
    """
    found: list[tuple[str, Any]] = []
    pending: list[tuple[str, torch.nn.Module]] = [("", model)]
    while pending:
        name, module = pending.pop()
        if is_lora(module):
            _check_plain(name, module)
            found.append((name, module))
            continue
        prefix = f"{name}." if name else ""
        pending += [(prefix + key, child) for key, child in module._modules.items() if child is not None]
    return sorted(found, key=lambda item: item[0])


def adapter_state(layers: list[tuple[str, Any]]) -> tuple[object, ...]:
    """What `lora_digest` depends on, cheap enough for every call; the tensors' own identity aside."""
    return tuple((name, tuple(_acting(layer)), tuple(layer.scaling.items())) for name, layer in layers)


def merged_state(layers: list[tuple[str, Any]]) -> tuple[object, ...]:
    """Which adapters are merged into which weights: these were then written in a way that torch doesn't count."""
    return tuple((name, tuple(layer.merged_adapters)) for name, layer in layers if layer.merged_adapters)


def lora_digest(layers: list[tuple[str, Any]]) -> str | None:
    """The digest of what acts in a forward: None if nothing does; `digest_of` a plain adapter, which engines that load
    it from a folder find, too; `memory:` and a hash of all for anything else, such as two adapters at once."""
    acting = [(name, layer, key) for name, layer in layers for key in _acting(layer)]
    if not acting:
        return None
    scalings = {float(layer.scaling[key]) for _, layer, key in acting}
    if len({key for _, _, key in acting}) == 1 and len(scalings) == 1:
        return digest_of(
            scalings.pop(), [matrix for name, layer, key in acting for matrix in _matrices(name, layer, key)]
        )
    digest = hashlib.sha256()
    for name, layer, key in acting:  # in the order in which they are added
        digest.update(digest_of(float(layer.scaling[key]), _matrices(name, layer, key)).encode())
    return f"memory:{digest.hexdigest()}"


def _acting(layer: Any) -> list[str]:
    if layer.disable_adapters or layer.merged:
        return []
    return [key for key in layer.active_adapters if key in layer.lora_A]


def _matrices(name: str, layer: Any, key: str) -> list[Matrix]:
    return [_matrix(f"{name}.lora_A", layer.lora_A[key]), _matrix(f"{name}.lora_B", layer.lora_B[key])]


def _matrix(name: str, linear: torch.nn.Linear) -> Matrix:
    weight = linear.weight.detach().cpu().contiguous()
    rows, columns = weight.shape
    data = weight.reshape(-1).view(torch.uint8).numpy().data
    return Matrix(name, _DTYPES[weight.dtype], (rows, columns), data)


def _check_plain(name: str, layer: Any) -> None:
    odd = [what for what in _EMPTY if len(getattr(layer, what))]
    odd += [what for what in _FALSE if any(getattr(layer, what).values())]
    if layer.fan_in_fan_out or not layer.cast_input_dtype_enabled:
        odd.append("fan_in_fan_out or no cast of inputs")
    if type(layer.base_layer) is not torch.nn.Linear:
        odd.append(f"a {type(layer.base_layer).__name__} in it")
    for key in layer.lora_A:
        matrices = (layer.lora_A[key], layer.lora_B[key])
        if any(type(each) is not torch.nn.Linear or each.weight.dtype not in _DTYPES for each in matrices):
            odd.append("matrices that aren't linear layers")
        if any(each.bias is not None for each in matrices):
            odd.append("a bias")
        if type(layer.lora_dropout[key]) not in (torch.nn.Identity, torch.nn.Dropout):
            odd.append(f"a {type(layer.lora_dropout[key]).__name__}")
    if layer.disable_adapters and layer.merged:
        odd.append("an adapter that is merged and disabled: the next forward takes it out of the weights")
    if odd:
        raise UnsupportedError("lora", f"the LoRA layer {name} has {', '.join(odd)}: only plain LoRA is supported")
