"""A cache of one block in which every plane of every layer is a tensor [head, token, dim] of its own."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from kvlingua.layouts import Buffer, Geometry, Layout, View

ROW = Layout("tensors", "layer plane | head token dim")
DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float8_e4m3fn": torch.float8_e4m3fn,
    "float8_e4m3fnuz": torch.float8_e4m3fnuz,
    "float8_e5m2": torch.float8_e5m2,
    "uint8": torch.uint8,
    "float4_e2m1fn_x2": torch.uint8,
}

Tensors = dict[str, torch.Tensor]
"""By plane: [layer, head, token, dim]; heads and tokens are 1 where a plane has one value for all."""


def empty(geometry: Geometry, tokens: int) -> Tensors:
    """Room for all planes, filled with bytes 0x55."""
    result = {}
    for plane in geometry.planes:
        heads = 1 if plane.per == "tensor" else geometry.kv_heads
        size = geometry.layers, heads, tokens if plane.per == "token" else 1, plane.width * plane.itemsize
        result[plane.name] = torch.full(size, 0x55, dtype=torch.uint8).view(DTYPES[plane.dtype])
    return result


def random_numbers(geometry: Geometry, tokens: int, seed: int = 0, size: float = 1.0) -> Tensors:
    """Normal numbers of the given size in every plane; scales around 1 / 16."""
    generator = torch.Generator().manual_seed(seed)
    result = empty(geometry, tokens)
    for plane in geometry.planes:
        numbers = torch.randn(result[plane.name].shape, generator=generator)
        result[plane.name].copy_(numbers.exp() / 16 if plane.is_scale else numbers * size)
    return result


def view(geometry: Geometry, tensors: Tensors, static: Mapping[str, torch.Tensor] | None = None) -> View:
    """All tokens. static: scales that lie outside the cache, by plane [layer, head or 1]."""
    static = static or {}
    names = [plane.name for plane in geometry.planes if plane.name not in static]
    tokens = tensors[geometry.numbers[0].name].shape[2]
    pool = ROW.pool(
        geometry,
        geometry.full,
        page=tokens,
        blocks=1,
        buffers=[Buffer.of(tensors[name][layer]) for layer in range(geometry.layers) for name in names],
        scales={
            name: [Buffer.of(scales[layer]) for layer in range(geometry.layers)] for name, scales in static.items()
        },
    )
    return pool.view([0], 0, tokens)
