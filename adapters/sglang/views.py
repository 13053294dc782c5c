"""SGLang's pool of KV, as a described Pool, and its token slots, as block numbers of that pool."""

from __future__ import annotations

from array import array
from typing import Any

import torch

from kvlingua.common.errors import UnsupportedError
from kvlingua.layouts.errors import LayoutError
from kvlingua.layouts.formats import format
from kvlingua.layouts.geometry import Extent, Geometry
from kvlingua.layouts.memory import Buffer
from kvlingua.layouts.view import Pool

# Names of SGLang's tensor axes, slowest first, and the row they are said to be.
_AXES = {
    "nhd": ("sglang_nhd", ("token", "head", "dim")),  # [slot, head, dim]: a slot is a block and a token in it
    "hnd": ("sglang_hnd", ("block", "head", "token", "dim")),  # [page, head, token, dim]
}
# Why other kinds of pool are refused. How an MLATokenToKVPool lies is known (`sglang_mla`), and copied to the bit.
_OTHERS = {
    "MLATokenToKVPool": "SGLang computes latent attention with AMX or on a GPU only, where kvlingua was never run",
    "SWAKVPool": "of layers with a sliding window SGLang keeps the last window only, so that chunks aren't whole",
    "MHATokenToKVPoolFP4": "its numbers can't be used without the scales of its own blocks",
}
_UNKNOWN = "how it lies isn't known"
# Axes of HiCache's host pool, slowest first; a "row" is a token of any page.
_HOST_AXES = {
    "layer_first": ("plane", "layer", "row", "head", "dim"),
    "page_first": ("plane", "row", "layer", "head", "dim"),
    "page_first_direct": ("plane", "block", "layer", "token", "head", "dim"),
    "page_head": ("plane", "block", "head", "token", "layer", "dim"),
}


def describe_pool(kv: Any, geometry: Geometry, page: int, extent: Extent | None = None) -> Pool:
    """The live MHATokenToKVPool `kv`, in blocks of `page` tokens.

    extent: which kv heads of the model it holds, in all layers; all heads by default. What its tensors claim (shape,
    strides, type, place in their storage) is checked against the model and the row.
    Raises UnsupportedError for a kind of pool that isn't known, LayoutError for claims that don't hold.
    """
    from sglang.srt.layers.quantization.fp4_kv_cache_quant_method import UnquantizedKVCacheMethod
    from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool

    if type(kv) is not MHATokenToKVPool:
        kind = type(kv).__name__
        raise UnsupportedError("pool", f"a KV cache of kind {kind} isn't supported: {_OTHERS.get(kind, _UNKNOWN)}")
    plain = type(kv.quant_method) is UnquantizedKVCacheMethod and kv.k_scale_buffer is None
    if not plain or kv.dtype != kv.store_dtype:
        raise UnsupportedError("kv_quantised", f"a KV cache of {kv.dtype} kept as {kv.store_dtype} isn't supported yet")
    if kv.kv_cache_layout not in _AXES:
        raise UnsupportedError("layout", f"the KV cache's layout {kv.kv_cache_layout!r} isn't supported yet")
    if kv.page_size != page:
        raise UnsupportedError(
            "page_size", f"pages of {kv.page_size} tokens in the pool, of {page} in the prefix cache"
        )
    extent = geometry.full if extent is None else extent
    layout, axes = _AXES[kv.kv_cache_layout]
    rows = kv.size + kv.page_size
    if rows % page or kv.start_layer != 0 or not len(kv.k_buffer) == len(kv.v_buffer) == geometry.layers:
        raise LayoutError(
            f"expected {geometry.layers} layers from layer 0 on in whole pages of {page} tokens, got "
            f"{len(kv.k_buffer)} of K and {len(kv.v_buffer)} of V from layer {kv.start_layer} on, and {rows} rows"
        )
    tensors = [tensor for layer in zip(kv.k_buffer, kv.v_buffer, strict=True) for tensor in layer]
    sizes = {"block": rows // page, "token": page if "block" in axes else rows, "head": extent.heads}
    strides: dict[str, int] = {}
    for index, tensor in enumerate(tensors):
        plane = geometry.planes[index % 2]
        expected = tuple((sizes | {"dim": plane.width})[axis] for axis in axes)
        dtype = str(tensor.dtype).removeprefix("torch.")
        if tuple(tensor.shape) != expected or dtype != geometry.dtype:
            raise LayoutError(
                f"expected {plane.name} of layer {index // 2} to be {expected} {geometry.dtype}, "
                f"got {tuple(tensor.shape)} {dtype}"
            )
        claimed = dict(zip(axes, tensor.stride(), strict=True))
        claimed.setdefault("block", claimed["token"] * page)
        for axis, elements in claimed.items():
            name, stride = f"{plane.name}.{axis}", elements * tensor.itemsize
            if strides.setdefault(name, stride) != stride:
                raise LayoutError(f"layers differ in their stride along {name}: {strides[name]} and {stride} bytes")
    return format(layout).pool(
        geometry,
        extent,
        page=page,
        blocks=rows // page,
        buffers=[Buffer.of(tensor) for tensor in tensors],
        strides=strides,
    )


def describe_host_pool(host: Any, kv: Any, geometry: Geometry, page: int, extent: Extent) -> Pool:
    """HiCache's host pool, an MHATokenToKVPoolHost, for the live `kv` of which it holds copies; blocks as there.

    Raises UnsupportedError for a kind or layout that isn't known, LayoutError for claims that don't hold.
    """
    from sglang.srt.mem_cache.pool_host.mha import MHATokenToKVPoolHost

    describe_pool(kv, geometry, page, extent)
    if type(host) is not MHATokenToKVPoolHost:
        raise UnsupportedError("pool", f"a host pool of kind {type(host).__name__} isn't supported: {_UNKNOWN}")
    if host.layout not in _HOST_AXES:
        known = ", ".join(_HOST_AXES)
        raise UnsupportedError("layout", f"--hicache-mem-layout {host.layout} isn't supported, which {known} are")
    width, tensor = geometry.planes[0].width, host.kv_buffer
    sizes = {"plane": 2, "layer": geometry.layers, "row": host.page_num * page, "block": host.page_num}
    sizes |= {"token": page, "head": extent.heads, "dim": width}
    expected = tuple(sizes[axis] for axis in _HOST_AXES[host.layout])
    dtype = str(tensor.dtype).removeprefix("torch.")
    if tuple(tensor.shape) != expected or dtype != geometry.dtype or not tensor.is_contiguous():
        raise LayoutError(
            f"expected a host pool of {expected} {geometry.dtype}, dense, got {tuple(tensor.shape)} {dtype}, "
            f"strides {tensor.stride()}"
        )
    if any(plane.width != width for plane in geometry.planes):
        raise UnsupportedError("layout", "K and V of unequal width aren't supported in a host pool")
    row = format(f"hicache_{host.layout}")
    return row.pool(geometry, extent, page=page, blocks=host.page_num, buffers=[Buffer.of(tensor)])


def blocks_of(slots: torch.Tensor, page: int, before: int = 0, first: int = 1) -> array[int]:
    """The block table of a sequence whose tokens from position `before` on are in the pool's rows `slots` [token].

    before: a multiple of `page`; entries for what lies before are 0 and not to be used. first: the first page in which
    tokens may lie; in page 0 of a pool that SGLang computes in lies padding. Raises LayoutError unless each page's
    tokens lie in one page of the pool, in order.
    """
    count = len(slots)
    slots = slots.to(torch.int64)
    blocks = slots[::page] // page
    expected = (blocks * page).repeat_interleave(page)[:count] + torch.arange(count) % page
    if before % page or (count and int(blocks.min()) < first) or not torch.equal(slots, expected):
        raise LayoutError(f"the slots of tokens {before} to {before + count} are not whole pages of {page} tokens")
    return array("q", bytes(8 * (before // page))) + array("q", blocks.tolist())
