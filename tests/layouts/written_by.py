"""For scripts that run in an engine's environment: is what an engine writes what our row describes, to the byte?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from kvlingua.layouts import Buffer, Geometry, Layout, Pool, convert, format

TOKENS = 21

Planes = Mapping[str, torch.Tensor]
"""Plane -> [layers, TOKENS, heads, width], of the plane's torch type."""

TORCH = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float8_e4m3fn": torch.float8_e4m3fn,
    "float8_e5m2": torch.float8_e5m2,
    "float4_e2m1fn_x2": torch.uint8,
    "uint8": torch.uint8,
}


def numbers(geometry: Geometry, seed: int = 0) -> Planes:
    """Random finite numbers for all planes."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for plane in geometry.planes:
        shape = geometry.layers, TOKENS, geometry.kv_heads, plane.width
        if TORCH[plane.dtype] == torch.uint8:
            found[plane.name] = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        else:  # exact and normal in every type, so that no engine's way of rounding shows
            exponent = torch.randint(-3, 6, shape, generator=generator)
            mantissa = torch.randint(4, 8, shape, generator=generator)
            sign = torch.randint(0, 2, shape, generator=generator) * 2 - 1
            found[plane.name] = (sign * mantissa * 2.0**exponent).to(TORCH[plane.dtype])
    return found


def table(blocks: int) -> list[int]:
    """Blocks of a sequence, in an order that isn't theirs."""
    return torch.randperm(blocks, generator=torch.Generator().manual_seed(blocks)).tolist()


def slots(blocks: int, page: int) -> torch.Tensor:
    """[TOKENS]: block * page + offset of each token."""
    position = torch.arange(TOKENS)
    return torch.tensor(table(blocks))[position // page] * page + position % page


def contiguous(geometry: Geometry, planes: Planes) -> tuple[Pool, list[torch.Tensor]]:
    """The same numbers as a dense pool [head, token, dim] per layer and plane, and its tensors."""
    tensors = [
        planes[plane.name][layer].view(torch.uint8).transpose(0, 1).contiguous()
        for layer in range(geometry.layers)
        for plane in geometry.planes
    ]
    layout = Layout("dense", "layer plane | head token dim")
    buffers = [Buffer.of(tensor) for tensor in tensors]
    return layout.pool(geometry, geometry.full, page=TOKENS, blocks=1, buffers=buffers), tensors


def agrees(
    row: str,
    geometry: Geometry,
    planes: Planes,
    memory: Sequence[torch.Tensor],
    write: Callable[[], None],
    *,
    page: int,
    blocks: int,
    buffers: Sequence[torch.Tensor] | None = None,
    strides: Mapping[str, int] | None = None,
) -> bool:
    """Whether `write` leaves the same bytes in `memory` as a conversion into `row` does, and the row reads them back.

    memory: whole allocations, zeroed first. buffers: what our row takes, if not these.
    """
    pool = format(row).pool(
        geometry,
        geometry.full,
        page=page,
        blocks=blocks,
        buffers=[buffer_of(tensor) for tensor in buffers or memory],
        strides=strides,
    )
    order = table(blocks) if blocks > 1 else [0]
    for tensor in memory:
        tensor.view(torch.uint8).zero_()
    write()
    theirs = [tensor.clone() for tensor in memory]
    nothing = {name: torch.zeros_like(tensor) for name, tensor in planes.items()}
    back, got = contiguous(geometry, nothing)
    convert(pool.view(order, 0, TOKENS), back.view([0], 0, TOKENS))
    ours, wanted = contiguous(geometry, planes)
    read = all(torch.equal(one, other) for one, other in zip(got, wanted, strict=True))
    for tensor in memory:
        tensor.view(torch.uint8).zero_()
    convert(ours.view([0], 0, TOKENS), pool.view(order, 0, TOKENS))
    written = all(
        torch.equal(one.view(torch.uint8), other.view(torch.uint8)) for one, other in zip(memory, theirs, strict=True)
    )
    return read and written


def buffer_of(tensor: torch.Tensor) -> Buffer:
    """The bytes from a tensor's first element to its last one, whatever its strides."""
    span = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)) + 1
    return Buffer(tensor.data_ptr(), span * tensor.element_size(), tensor)
