"""SGLang's caches and those of its HiCache, as SGLang defines them.

Checked against the pools of 0.5.23, built without a model: test_engine_definitions.py.
"""

from __future__ import annotations

from dataclasses import dataclass

from kvlingua.layouts import Plane
from tests.layouts.engine_pools_form import Form, Shape, Tensor, numbers


@dataclass(frozen=True)
class Slots(Form):
    """MHATokenToKVPool (mem_cache/memory_pool.py): k_buffer[layer], v_buffer[layer] [rows, H, D], a row per token slot.

    Equally wide K and V are halves of one allocation (_create_buffers_normal), others have one each. A slot is
    page * page_size + offset; fp8 is kept as bytes (store_dtype).
    """

    def sizes(self, s: Shape) -> list[int]:
        k, v = (s.slots * s.heads * s.bytes(name) for name in ("k", "v"))
        return [k + v] * s.layers if k == v else [k, v] * s.layers

    def buffers(self, s: Shape, memory: list[Tensor]) -> list[Tensor]:
        if len(memory) == 2 * s.layers:
            return memory
        return [half for fused in memory for half in fused.view(2, -1)]

    def cache(self, s: Shape, memory: list[Tensor], plane: Plane, layer: int) -> Tensor:
        buffer = numbers(self.buffers(s, memory)[2 * layer + (plane.name == "v")], plane)
        return buffer.view(s.slots, s.heads, plane.width)

    def write(self, s: Shape, cache: Tensor, plane: Plane, block: Tensor, head: Tensor, at: Tensor, x: Tensor) -> None:
        cache[block * s.page + at, head] = x


@dataclass(frozen=True)
class Pages(Slots):
    """The same class with SGLANG_USE_HND_KVCACHE: [page, H, N, D]."""

    def cache(self, s: Shape, memory: list[Tensor], plane: Plane, layer: int) -> Tensor:
        buffer = numbers(self.buffers(s, memory)[2 * layer + (plane.name == "v")], plane)
        return buffer.view(s.blocks, s.heads, s.page, plane.width)

    def write(self, s: Shape, cache: Tensor, plane: Plane, block: Tensor, head: Tensor, at: Tensor, x: Tensor) -> None:
        cache[block, head, at] = x


@dataclass(frozen=True)
class Vectorized(Form):
    """The same class with SGLANG_AITER_KV_CACHE_LAYOUT=vectorized_5d: K [B, H, Dk/X, N, X], V [B, H, N/X, Dv, X], each
    in an allocation of its own; X elements fill 16 bytes. Written as by reshape_and_cache_shuffle_5d
    (kernels/ops/kvcache/shuffle_5d_cache.py).
    """

    def sizes(self, s: Shape) -> list[int]:
        return [s.slots * s.heads * s.bytes("k"), s.slots * s.heads * s.bytes("v")] * s.layers

    def cache(self, s: Shape, memory: list[Tensor], plane: Plane, layer: int) -> Tensor:
        buffer, x = numbers(memory[2 * layer + (plane.name == "v")], plane), 16 // plane.itemsize
        if plane.name == "k":
            return buffer.view(s.blocks, s.heads, plane.width // x, s.page, x)
        return buffer.view(s.blocks, s.heads, s.page // x, plane.width, x)

    def write(self, s: Shape, cache: Tensor, plane: Plane, block: Tensor, head: Tensor, at: Tensor, x: Tensor) -> None:
        tile = 16 // plane.itemsize
        if plane.name == "k":
            cache[block, head, :, at] = x.unflatten(-1, (-1, tile))
        else:
            cache[block, head, at // tile, :, at % tile] = x


@dataclass(frozen=True)
class Fp4(Form):
    """MHATokenToKVPoolFP4: k, v [rows, H, D/2] bytes; k_scale_buffer, v_scale_buffer [rows, H * D/16] bytes."""

    def sizes(self, s: Shape) -> list[int]:
        return [s.slots * s.heads * s.bytes(plane.name) for plane in s.geometry.planes] * s.layers

    def cache(self, s: Shape, memory: list[Tensor], plane: Plane, layer: int) -> Tensor:
        index = [other.name for other in s.geometry.planes].index(plane.name)
        buffer = memory[len(s.geometry.planes) * layer + index]
        if plane.is_scale:
            return buffer.view(s.slots, s.heads * plane.width)
        return buffer.view(s.slots, s.heads, plane.width)

    def write(self, s: Shape, cache: Tensor, plane: Plane, block: Tensor, head: Tensor, at: Tensor, x: Tensor) -> None:
        slot = block * s.page + at
        if not plane.is_scale:
            cache[slot, head] = x
        else:
            for index, number in enumerate(head[0].tolist()):
                cache[slot[:, 0], number * plane.width : (number + 1) * plane.width] = x[:, index]


@dataclass(frozen=True)
class Latent(Form):
    """MLATokenToKVPool: kv_buffer[layer] [rows, 1, kv_lora_rank + qk_rope_head_dim]."""

    def sizes(self, s: Shape) -> list[int]:
        return [s.slots * s.both] * s.layers

    def cache(self, s: Shape, memory: list[Tensor], plane: Plane, layer: int) -> Tensor:
        return self.split(s, numbers(memory[layer], plane).view(s.slots, 1, -1), plane)

    def split(self, s: Shape, rows: Tensor, plane: Plane) -> Tensor:
        """The latent part of [..., 576], or the rotated one."""
        latent = s.geometry.plane("latent").width
        return rows[..., :latent] if plane.name == "latent" else rows[..., latent:]

    def write(self, s: Shape, cache: Tensor, plane: Plane, block: Tensor, head: Tensor, at: Tensor, x: Tensor) -> None:
        cache[block * s.page + at, head] = x


HOST = {
    "layer_first": ("kv", "layer", "slot", "head", "dim"),
    "page_first": ("kv", "slot", "layer", "head", "dim"),
    "page_first_direct": ("kv", "page", "layer", "token", "head", "dim"),
    "page_head": ("kv", "page", "head", "token", "layer", "dim"),
    "page_unified": ("page", "group", "layer", "kv", "token", "in_group", "dim"),
}
"""The dims of MHATokenToKVPoolHost.init_kv_buffer (mem_cache/pool_host/mha.py, page_unified.py), in its order."""


@dataclass(frozen=True)
class Host(Form):
    """One tensor for all layers, K and V (HiCache). heads_apart: a head group for each head, else one for all."""

    dims: tuple[str, ...] = ()
    heads_apart: bool = False

    def sizes(self, s: Shape) -> list[int]:
        return [s.slots * s.heads * s.layers * s.both]

    def cache(self, s: Shape, memory: list[Tensor], plane: Plane, layer: int) -> Tensor:
        sizes = {"kv": 2, "layer": s.layers, "slot": s.slots, "page": s.blocks, "token": s.page, "head": s.heads}
        sizes |= {"dim": plane.width, "group": s.heads if self.heads_apart else 1}
        sizes["in_group"] = s.heads // sizes["group"]
        kv_buffer = numbers(memory[0], plane).view([sizes[dim] for dim in self.dims])
        dims = list(self.dims)
        for dim, index in (("kv", 0 if plane.name == "k" else 1), ("layer", layer)):
            kv_buffer = kv_buffer.select(dims.index(dim), index)
            dims.remove(dim)
        if "slot" in dims:
            kv_buffer = kv_buffer.unflatten(dims.index("slot"), (s.blocks, s.page))
            at = dims.index("slot")
            dims[at : at + 1] = ["page", "token"]
        if "group" in dims:  # head = group * heads in a group + head in the group
            kv_buffer = kv_buffer.movedim(dims.index("in_group"), 2).flatten(1, 2)
            dims = ["page", "head", *dims[2:]]
            dims.remove("in_group")
        return kv_buffer.permute([dims.index(dim) for dim in ("page", "head", "token", "dim")])


@dataclass(frozen=True)
class LatentHost(Latent):
    """MLATokenToKVPoolHost.init_kv_buffer (mem_cache/pool_host/mla.py): without the pair of K and V, one head."""

    layout: str = ""

    def sizes(self, s: Shape) -> list[int]:
        return [s.slots * s.layers * s.both]

    def cache(self, s: Shape, memory: list[Tensor], plane: Plane, layer: int) -> Tensor:
        kv_buffer, width = numbers(memory[0], plane), s.both // plane.itemsize
        if self.layout == "layer_first":
            rows = kv_buffer.view(s.layers, s.slots, 1, width)[layer]
        elif self.layout == "page_first":
            rows = kv_buffer.view(s.slots, s.layers, 1, width)[:, layer]
        else:
            pages = kv_buffer.view(s.blocks, s.layers, s.page, 1, width)[:, layer]
            return self.split(s, pages.transpose(1, 2), plane)
        return self.split(s, rows, plane)

    def write(self, s: Shape, cache: Tensor, plane: Plane, block: Tensor, head: Tensor, at: Tensor, x: Tensor) -> None:
        if cache.dim() == 4:
            cache[block, head, at] = x
        else:
            cache[block * s.page + at, head] = x


SGLANG_FORMS = (
    Slots("sglang_nhd"),
    Pages("sglang_hnd"),
    Vectorized("sglang_vectorized_5d", tokens=(0, 16)),
    Fp4("sglang_fp4", kinds=("fp4",)),
    Latent("sglang_mla", kinds=("mla",)),
    *(Host(f"hicache_{layout}", equal=True, dims=dims) for layout, dims in HOST.items()),
    Host("hicache_page_unified_heads", equal=True, dims=HOST["page_unified"], heads_apart=True),
    *(
        LatentHost(f"hicache_mla_{layout}", kinds=("mla",), layout=layout)
        for layout in ("layer_first", "page_first", "page_first_direct")
    ),
)
