"""The conversion written for reading: every element's offset spelled out, with torch. The oracle of all kernels.

It takes nothing from the plan but which layers and heads are common, so that a mistake in the plan's integers shows.
"""

from __future__ import annotations

import ctypes

import torch

from kvlingua.layouts.geometry import Extent
from kvlingua.layouts.view import PlaneAddress, View

# Bits are moved, numbers never read: integers of the same size.
_BITS = {2: torch.int16, 4: torch.int32}


def copy(source: View, target: View, extent: Extent) -> None:
    """Copy all tokens of `source` to those of `target` for the heads and layers of `extent`, which both hold."""
    for index in range(len(source.pool.geometry.planes)):
        for layer in range(extent.layer_start, extent.layer_stop):
            numbers, offsets = _elements(source, index, layer, extent)
            into, places = _elements(target, index, layer, extent)
            into[places] = numbers[offsets]


def _elements(view: View, index: int, layer: int, extent: Extent) -> tuple[torch.Tensor, torch.Tensor]:
    """The flat memory of a plane's layer, and where in it the element [token, head, dim] is, in elements."""
    pool, plane = view.pool, view.pool.planes[index]
    itemsize = pool.geometry.itemsize
    position = torch.arange(view.start, view.stop)
    block = torch.tensor(view.table, dtype=torch.int64)[position // pool.page]
    token = position % pool.page
    head = torch.arange(extent.head_start, extent.head_stop) - pool.extent.head_start
    dim = torch.arange(plane.width)
    offsets = (
        (block * plane.block + token * plane.token)[:, None, None]
        + (head * plane.head)[None, :, None]
        + (dim * plane.dim)[None, None, :]
    )
    base = plane.bases[layer - pool.extent.layer_start]
    return _flat(view, plane, base), offsets // itemsize


def _flat(view: View, plane: PlaneAddress, base: int) -> torch.Tensor:
    """The memory from `base` to the pool's last element of this plane and layer, as a one-dimensional tensor."""
    pool = view.pool
    itemsize = pool.geometry.itemsize
    nbytes = (
        (pool.blocks - 1) * plane.block
        + (pool.extent.heads - 1) * plane.head
        + (pool.page - 1) * plane.token
        + (plane.width - 1) * plane.dim
        + itemsize
    )
    memory = (ctypes.c_char * nbytes).from_address(base)
    return torch.frombuffer(memory, dtype=_BITS[itemsize])
