"""The canonical form, and caches of transformers, llama.cpp, TensorRT-LLM and LMCache as these define them."""

from __future__ import annotations

from dataclasses import dataclass

from kvlingua.layouts import Plane
from tests.layouts.engine_pools_form import Form, Shape, Tensor, numbers


@dataclass(frozen=True)
class Canonical(Form):
    """docs/format/layout.md: a chunk is one plane after the other, each [head, layer, token, dim]."""

    def sizes(self, s: Shape) -> list[int]:
        return [s.blocks * (s.geometry.block_bytes(s.extent, s.page) + s.pad)]

    def cache(self, s: Shape, memory: list[Tensor], plane: Plane, layer: int) -> Tensor:
        chunks = memory[0].view(s.blocks, -1)
        start = 0
        for other in s.geometry.planes:
            heads = 1 if other.per == "tensor" else s.heads
            tokens = s.page if other.per == "token" else 1
            size = heads * s.layers * tokens * s.bytes(other.name)
            if other == plane:
                found = numbers(chunks[:, start : start + size], plane)
                return found.unflatten(1, (heads, s.layers, tokens, plane.width))[:, :, layer]
            start += size
        raise AssertionError(plane)

    def write(self, s: Shape, cache: Tensor, plane: Plane, block: Tensor, head: Tensor, at: Tensor, x: Tensor) -> None:
        if plane.per == "token":
            cache[block, head, at] = x
        elif plane.per == "head":
            cache[block, head, 0] = x
        else:
            cache[block[:, 0], 0, 0] = x[:, 0]

    def strides(self, s: Shape) -> dict[str, int]:
        return {"block": s.geometry.block_bytes(s.extent, s.page) + s.pad} if s.pad else {}


@dataclass(frozen=True)
class Dynamic(Form):
    """DynamicLayer: keys, values [batch row, H, T, D]; one row. Of DeepSeek: latent and rope (cache_utils.py).

    With padding the row is one of a longer tensor; a window's first tokens lie there (keys[:, :, -window + 1 :]).
    Checked against the caches of 5.23, as are static and paged ones: test_engine_definitions.py.
    """

    sliced: bool = False

    def sizes(self, s: Shape) -> list[int]:
        return [
            s.heads * (s.page * s.bytes(plane.name) + self.extra(s, plane)) for plane in s.geometry.planes
        ] * s.layers

    def extra(self, s: Shape, plane: Plane) -> int:
        """Bytes of the tokens that the tensor has beyond those held: `pad` in tokens."""
        return s.pad * s.bytes(plane.name)

    def buffers(self, s: Shape, memory: list[Tensor]) -> list[Tensor]:
        if not self.sliced:
            return memory
        planes = s.geometry.planes
        return [buffer[self.extra(s, planes[index % len(planes)]) :] for index, buffer in enumerate(memory)]

    def cache(self, s: Shape, memory: list[Tensor], plane: Plane, layer: int) -> Tensor:
        planes = s.geometry.planes
        keys = numbers(memory[len(planes) * layer + planes.index(plane)], plane)
        keys = keys.view(1, s.heads, s.page + s.pad, plane.width)
        return keys[:, :, s.pad :] if self.sliced else keys[:, :, : s.page]

    def strides(self, s: Shape) -> dict[str, int]:
        if not s.pad:
            return {}
        return {f"{plane.name}.head": (s.page + s.pad) * s.bytes(plane.name) for plane in s.geometry.planes}


@dataclass(frozen=True)
class Static(Form):
    """StaticLayer: keys, values [B, H, max_cache_len, D]; a block is a batch row."""

    def sizes(self, s: Shape) -> list[int]:
        return [s.blocks * s.heads * s.page * s.bytes(plane.name) for plane in s.geometry.planes] * s.layers

    def cache(self, s: Shape, memory: list[Tensor], plane: Plane, layer: int) -> Tensor:
        planes = s.geometry.planes
        keys = numbers(memory[len(planes) * layer + planes.index(plane)], plane)
        return keys.view(s.blocks, s.heads, s.page, plane.width)


@dataclass(frozen=True)
class Stacked(Form):
    """All layers, K and V in one tensor of blocks.

    hnd: TensorRT-LLM's pool [B, L, 2, H, N, D] (get_primary_pool_data is [B, 2, H * N * D] of a layer; its attention
    reads [H, N, D], which LMCache 0.5.6 calls NB_NL_TWO_NH_BS_HS). Read, not run: it needs its GPU library.
    Otherwise transformers' blocks of pages [K | V] per layer, [N, H, D] each (FullAttentionCacheAllocator).
    """

    hnd: bool = False

    def sizes(self, s: Shape) -> list[int]:
        return [s.slots * s.layers * s.heads * s.both]

    def cache(self, s: Shape, memory: list[Tensor], plane: Plane, layer: int) -> Tensor:
        pool = numbers(memory[0], plane).view(s.blocks, s.layers, 2, -1)
        side = pool[:, layer, 0 if plane.name == "k" else 1]
        if self.hnd:
            return side.unflatten(1, (s.heads, s.page, plane.width))
        return side.unflatten(1, (s.page, s.heads, plane.width)).transpose(1, 2)


@dataclass(frozen=True)
class LlamaState(Form):
    """llama_state_seq_get_data: per layer K (int32 type, uint64 bytes a row, rows of all heads), then per layer V as
    well, or, transposed, V (int32 type, uint32 bytes a number, uint32 rows; rows of all cells). Checked once by moving
    a model's cache there and back with llama-cpp-python 0.3.36.
    """

    transposed: bool = False

    def sizes(self, s: Shape) -> list[int]:
        return [sum(12 + s.page * s.heads * s.bytes(name) for name in ("k", "v")) * s.layers]

    def buffers(self, s: Shape, memory: list[Tensor]) -> list[Tensor]:
        rest, parts = memory[0], []
        for name in ("k", "v"):
            size = s.page * s.heads * s.bytes(name)
            for _ in range(s.layers):
                parts.append(rest[12 : 12 + size])
                rest = rest[12 + size :]
        return parts

    def cache(self, s: Shape, memory: list[Tensor], plane: Plane, layer: int) -> Tensor:
        data = numbers(self.buffers(s, memory)[layer + (s.layers if plane.name == "v" else 0)], plane)
        if plane.name == "v" and self.transposed:  # [head * dim][cell]
            return data.view(1, s.heads, plane.width, s.page).transpose(2, 3)
        return data.view(1, s.page, s.heads, plane.width).transpose(1, 2)


@dataclass(frozen=True)
class Chunk(Form):
    """LMCache's MemoryFormat: KV_2LTD [2, L, T, H * D], of one layer KV_T2D [T, 2, H * D] and KV_2TD [2, T, H * D].

    Checked against multi_layer_kv_transfer and single_layer_kv_transfer of 0.5.6 (v1/platform/torch_ops).
    """

    order: str = "2LT"

    def sizes(self, s: Shape) -> list[int]:
        layer = s.page * s.heads * s.both
        return [s.layers * layer] if "L" in self.order else [layer] * s.layers

    def cache(self, s: Shape, memory: list[Tensor], plane: Plane, layer: int) -> Tensor:
        side = 0 if plane.name == "k" else 1
        hidden = s.heads * plane.width
        if self.order == "2LT":
            rows = numbers(memory[0], plane).view(2, s.layers, s.page, hidden)[side, layer]
        elif self.order == "T2":
            rows = numbers(memory[layer], plane).view(s.page, 2, hidden)[:, side]
        else:
            rows = numbers(memory[layer], plane).view(2, s.page, hidden)[side]
        return rows.unflatten(1, (s.heads, plane.width)).transpose(0, 1)[None]


@dataclass(frozen=True)
class LatentChunk(Form):
    """LMCache's KV_MLA_FMT: [1, L, T, kv_lora_rank + qk_rope_head_dim]."""

    def sizes(self, s: Shape) -> list[int]:
        return [s.layers * s.page * s.both]

    def cache(self, s: Shape, memory: list[Tensor], plane: Plane, layer: int) -> Tensor:
        rows = numbers(memory[0], plane).view(1, s.layers, s.page, -1)[:, layer, None]
        latent = s.geometry.plane("latent").width
        return rows[..., :latent] if plane.name == "latent" else rows[..., latent:]


OTHER_FORMS = (
    Canonical("canonical", kinds=("kv", "mla", "scaled", "fp4"), padded=True),
    Dynamic("hf", kinds=("kv", "mla"), has_blocks=False, padded=True),
    Static("hf_static", kinds=("kv", "mla")),
    Dynamic("hf_sliding", kinds=("kv", "mla"), has_blocks=False, padded=True, sliced=True),
    Stacked("hf_paged", equal=True),
    LlamaState("llamacpp", has_blocks=False),
    LlamaState("llamacpp_v_trans", has_blocks=False, transposed=True),
    Stacked("trtllm_hnd", equal=True, hnd=True),
    Chunk("lmcache_2ltd", equal=True, has_blocks=False),
    Chunk("lmcache_t2d", equal=True, has_blocks=False, order="T2"),
    Chunk("lmcache_2td", equal=True, has_blocks=False, order="2T"),
    LatentChunk("lmcache_mla", kinds=("mla",), has_blocks=False),
)
