"""A proof, at every start, that the kernels of this vLLM on this machine keep K and V, or latents and rotated keys, as
the layout's row says: they are given numbers to write, which are then read back by that row."""

from dataclasses import replace
from typing import Any

import torch

from kvlingua.adapters.vllm.views import MLA_LAYOUT, SCALES, held, pool_of, registered_dtype, static_scales
from kvlingua.common.errors import UnsupportedError
from kvlingua.layouts.convert import convert
from kvlingua.layouts.formats import format
from kvlingua.layouts.geometry import Geometry
from kvlingua.layouts.memory import Buffer

BLOCKS = 3


def check_kernel(name: str, layer: Any, geometry: Geometry, heads: int, page: int) -> None:
    """Raise UnsupportedError unless an attention layer writes new numbers where the layout called `name` has them.

    geometry: of the model; heads: kv heads that this worker holds; page: tokens per block.
    """
    one = replace(held(geometry), layers=1, kv_heads=heads)
    planes, dtype = one.numbers, getattr(torch, one.dtype)
    numbers = torch.Generator().manual_seed(0)
    # Whole numbers that every type holds exactly, from fp8 of 2 bits of mantissa on.
    written = [torch.randint(-7, 8, (BLOCKS * page, heads, plane.width), generator=numbers).float() for plane in planes]
    scales = static_scales([layer], one)
    factors = [getattr(layer, name) if scales else 1.0 for name in SCALES.values()]
    given = dtype if dtype.itemsize > 1 else layer.dtype  # numbers of fp8 the kernels make themselves
    new = [(plane * factor).to(given) for plane, factor in zip(written, factors, strict=True)]
    width = sum(plane.width for plane in planes)
    cache = torch.zeros(BLOCKS, heads, page, width, dtype=getattr(torch, registered_dtype(one.dtype)))
    slots = torch.randperm(BLOCKS * page, generator=numbers)
    try:
        if name == MLA_LAYOUT:
            latents, keys = new
            layer.impl.do_kv_cache_update(latents[:, 0], keys, cache, slots, layer.kv_cache_dtype, layer._k_scale)
        else:
            layer.impl.do_kv_cache_update(layer, *new, cache, slots)
    except (RuntimeError, NotImplementedError, AttributeError, TypeError) as error:
        raise UnsupportedError("layout", f"vLLM's kernel can't be asked how it packs a block: {error}") from None
    found = [torch.zeros(heads, BLOCKS * page, plane.width, dtype=dtype) for plane in planes]
    target = format("hf").pool(
        one, one.full, page=BLOCKS * page, blocks=1, buffers=[Buffer.of(plane) for plane in found], scales=scales
    )
    pool = pool_of(name, [cache], one, page=page, blocks=BLOCKS, scales=scales)
    convert(pool.view(range(BLOCKS), 0, BLOCKS * page), target.view([0], 0, BLOCKS * page))
    for plane, right in zip(found, written, strict=True):
        if not torch.equal(plane.float()[:, slots], right.transpose(0, 1)):
            raise UnsupportedError("layout", f"vLLM's kernel doesn't pack a block as {name}: of which version is it?")
