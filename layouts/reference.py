"""The conversion written for reading: every element's offset spelled out, with torch. The oracle of all kernels.

It takes nothing from the plan but which layers and heads are common, so that a mistake in the plan's integers shows.
What is done to a plane (casts.py) is common ground; how numbers are rounded is in rounding.py.
"""

from __future__ import annotations

import ctypes
from types import SimpleNamespace

import torch

from kvlingua.layouts.arrangement import Digits
from kvlingua.layouts.casts import Conversion, Op, conversions
from kvlingua.layouts.checks import static_scales_differ, values_differ
from kvlingua.layouts.dtypes import DTYPES
from kvlingua.layouts.geometry import Extent, Plane
from kvlingua.layouts.rounding import BITS, rounded, values
from kvlingua.layouts.view import View

_SMALLEST_NORMAL = 2.0**-126

Write = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Flat memory, indices into it, bits to put there."""


def copy(source: View, target: View, extent: Extent, allow_lossy: bool = False) -> None:
    """Convert all tokens of `source` into those of `target` for the heads and layers of `extent`, which both hold.

    Raises LayoutError, before anything is written, if scales differ that must not.
    """
    writes: list[Write] = []
    for step in conversions(source.pool.geometry, target.pool.geometry, target.pool.fixed, allow_lossy):
        for layer in range(extent.layer_start, extent.layer_stop):
            writes += _convert(step, source, target, layer, extent)
    for memory, places, bits in writes:
        memory[places.to(memory.device)] = bits.to(memory.device)


def _convert(step: Conversion, source: View, target: View, layer: int, extent: Extent) -> list[Write]:
    """What one plane of one layer comes to."""
    read = _read(source, step.source, layer, extent)
    memory, places = _elements(target, step.target, layer, extent)
    if step.op is Op.COPY:
        bits = read
    elif step.op is Op.COPY_EQUAL:
        assert step.source_scale is not None
        assert step.target_scale is not None
        ours = _read(source, step.source_scale, layer, extent)
        theirs = _read(target, step.target_scale, layer, extent)
        if not torch.equal(ours, theirs):
            raise static_scales_differ(step.target_scale.name)
        bits = read
    elif step.op is Op.CAST:
        numbers = values(read, step.source.dtype)
        if step.source_scale is not None:
            numbers = numbers * values(_read(source, step.source_scale, layer, extent), "float32")
        numbers = numbers * torch.tensor(step.factor, dtype=torch.float32)
        if step.target_scale is not None:
            numbers = numbers * _reciprocal(values(_read(target, step.target_scale, layer, extent), "float32"))
        bits = rounded(numbers, step.target.dtype)
    else:
        assert step.target_scale is not None
        numbers = values(read, step.source.dtype)
        scale = _scale(numbers, step.target.dtype)
        bits = rounded(numbers * _reciprocal(scale), step.target.dtype)
        return [
            (memory, places, bits),
            (*_elements(target, step.target_scale, layer, extent), rounded(scale, "float32")),
        ]
    if step.once:
        _check_agree(step.target, places, bits)
    return [(memory, places, bits)]


def _scale(numbers: torch.Tensor, dtype: str) -> torch.Tensor:
    """The scale of each token's head, [token, head, 1], that brings its largest number to the type's largest one."""
    largest = numbers.abs().amax(dim=2, keepdim=True)
    scale = largest / torch.full_like(largest, DTYPES[dtype].largest)
    usable = numbers.isfinite().all(dim=2, keepdim=True) & (scale >= _SMALLEST_NORMAL)
    return torch.where(usable, scale, torch.tensor(1.0))


def _reciprocal(scale: torch.Tensor) -> torch.Tensor:
    """1 / scale, rounded to float32."""
    return torch.ones_like(scale) / scale


def _check_agree(plane: Plane, places: torch.Tensor, bits: torch.Tensor) -> None:
    """Several tokens bring a value for the same place (one per block): it must be the same one."""
    _, group = torch.unique(places, return_inverse=True)
    one = torch.zeros(int(group.max()) + 1, dtype=bits.dtype)
    one[group] = bits
    if not torch.equal(one[group], bits):
        raise values_differ(plane.name)


def _read(view: View, plane: Plane, layer: int, extent: Extent) -> torch.Tensor:
    """The bits of a plane's layer, [token, head, dim], rotated dims in half order."""
    memory, places = _elements(view, plane, layer, extent)
    return memory[places.to(memory.device)].cpu()


def _elements(view: View, plane: Plane, layer: int, extent: Extent) -> tuple[torch.Tensor, torch.Tensor]:
    """The flat memory of a plane's layer, and where in it the element [token, head, dim] is, in elements.

    dim counts in half order: of the rotated dims the first of each pair, then the second of each, then the rest.
    """
    pool = view.pool
    address = next(address for address in pool.planes if address.name == plane.name)
    position = torch.arange(view.start, view.stop)
    block = torch.tensor(view.table, dtype=torch.int64)[position // pool.page] * address.block
    token = _spread(position % pool.page, address.token)
    head = (torch.arange(extent.head_start, extent.head_stop) - pool.extent.head_start) * address.head
    dims = torch.arange(plane.width)
    if plane.rope.order == "interleaved":
        rotated = dims[: plane.rope.width].clone()
        dims[: plane.rope.width] = torch.cat([rotated[0::2], rotated[1::2]])
    dim = _spread(dims, address.dim)
    offsets = (block + token)[:, None, None] + head[None, :, None] + dim[None, None, :]
    base = address.bases[layer - pool.extent.layer_start]
    memory = _memory(base, int(offsets.max()) // plane.itemsize + 1, BITS[plane.itemsize], pool.device)
    return memory, offsets // plane.itemsize


def _memory(address: int, count: int, dtype: torch.dtype, device: str) -> torch.Tensor:
    """Borrowed memory as a flat tensor, on the device that it is on."""
    if device in ("cpu", "pinned"):
        memory = (ctypes.c_char * (count * dtype.itemsize)).from_address(address)
        return torch.frombuffer(memory, dtype=dtype)
    found = {"data": (address, False), "shape": (count * dtype.itemsize,), "typestr": "|u1", "version": 3}
    return torch.as_tensor(SimpleNamespace(__cuda_array_interface__=found), device=device).view(dtype)


def _spread(index: torch.Tensor, digits: Digits) -> torch.Tensor:
    """The bytes that indices along an axis add: digit by digit, the fastest first."""
    offset = torch.zeros_like(index)
    for size, stride in reversed(digits):
        offset += index % size * stride
        index = index // size
    return offset
