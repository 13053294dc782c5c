"""A plan carried out element by element, by its integers alone: what csrc/kvlingua.h says, as plainly as can be."""

from __future__ import annotations

import torch

from kvlingua.layouts.casts import Op
from kvlingua.layouts.dtypes import DTYPES
from kvlingua.layouts.plan import Plan, PlaneCopy, Side
from kvlingua.layouts.rounding import BITS, rounded, values
from kvlingua.layouts.view import View

# The last name with a code wins; bytes of any kind are only moved.
_NAMES = {dtype.code: name for name, dtype in DTYPES.items()}


def walk(plan: Plan, memory: torch.Tensor) -> None:
    """Carry out `plan`, all of whose addresses lie in `memory`, a tensor of bytes."""
    for copy in plan.planes:
        for layer in range(plan.extent.layers):
            _walk(plan, copy, layer, memory)


def _walk(plan: Plan, copy: PlaneCopy, layer: int, memory: torch.Tensor) -> None:
    source_type, target_type = _NAMES[copy.source_type], _NAMES[copy.target_type]
    ours = [(size, source) for size, source, _ in copy.axes]
    theirs = [(size, target) for size, _, target in copy.axes]
    read = _load(memory, _places(plan.source, copy.source, copy.heads, layer, ours), source_type)
    places = _places(plan.target, copy.target, copy.heads, layer, theirs)
    ours_scale = _scales(plan.source, copy.source_scale, copy.heads, layer, memory)
    theirs_scale = _scales(plan.target, copy.target_scale, copy.heads, layer, memory)
    if copy.op in (Op.COPY, Op.COPY_EQUAL):
        _store(memory, places, read)
        return
    numbers = values(read, source_type)
    if copy.op is Op.QUANTISE:
        assert copy.target_scale is not None
        largest = numbers.abs().amax(dim=2, keepdim=True)
        scale = torch.div(largest, torch.full_like(largest, DTYPES[target_type].largest))
        good = largest.isfinite() & (scale >= torch.finfo(torch.float32).tiny)
        theirs_scale = torch.where(good, scale, torch.ones_like(scale))
        at = _places(plan.target, copy.target_scale, copy.heads, layer, [])
        _store(memory, at[:, :, None], rounded(theirs_scale, "float32"))
    if ours_scale is not None:
        numbers = numbers * ours_scale
    numbers = numbers * torch.full_like(numbers, copy.factor)
    if theirs_scale is not None:
        numbers = numbers * theirs_scale.reciprocal()
    _store(memory, places, rounded(numbers, target_type))


def _scales(view: View, side: Side | None, heads: int, layer: int, memory: torch.Tensor) -> torch.Tensor | None:
    """Values [token, head, 1]"""
    if side is None:
        return None
    return values(_load(memory, _places(view, side, heads, layer, []), "float32"), "float32")[:, :, None]


def _places(view: View, side: Side, heads: int, layer: int, axes: list[tuple[int, int]]) -> torch.Tensor:
    """Addresses [token, head, dim], or [token, head] without axes."""
    position = torch.arange(view.start, view.stop)
    block = torch.tensor(view.table)[position // view.pool.page]
    token = position % view.pool.page
    if side.tile_tokens:
        inside = token // side.tile_tokens * side.tile + token % side.tile_tokens * side.token
    else:
        inside = token * side.token
    places = side.bases(view.pool)[layer] + block * side.block + inside
    places = places[:, None] + torch.arange(heads) * side.head
    for size, stride in axes:
        places = places[..., None] + torch.arange(size) * stride
    return places.flatten(2) if axes else places


def _load(memory: torch.Tensor, places: torch.Tensor, dtype: str) -> torch.Tensor:
    size = DTYPES[dtype].itemsize
    index = (places - memory.data_ptr())[..., None] + torch.arange(size)
    assert int(index.min()) >= 0
    return memory[index].view(BITS[size]).squeeze(-1)


def _store(memory: torch.Tensor, places: torch.Tensor, bits: torch.Tensor) -> None:
    size = bits.itemsize
    index = (places - memory.data_ptr())[..., None] + torch.arange(size)
    assert int(index.min()) >= 0
    memory[index] = bits.contiguous()[..., None].view(torch.uint8)
