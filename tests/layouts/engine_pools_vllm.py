"""vLLM's caches, as vLLM defines them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from kvlingua.layouts import Plane
from tests.layouts.engine_pools_form import Form, Shape, Tensor, numbers


@dataclass(frozen=True)
class Packed(Form):
    """Logically [L, B, H, N, C] in the physical order that the name says (v1/kv_cache_layout.py), C bytes of content.

    Padding (page_size_padded) is behind the inner one of L and B, as in compute_layout_strides. Content: K then V
    (flash_attn_diffkv.py splits at the width of K); with scales K, its float32, V, its float32, as
    TritonAttentionImpl._ensure_scale_caches carves them (triton_attn.py); latent then rope (MLAAttentionSpec).
    Checked against compute_layout_strides and create_kv_cache_views of 0.32.0, see test_engine_definitions.py.
    """

    order: str = "LBHNC"

    def _sizes(self, s: Shape) -> dict[str, int]:
        return {"L": s.layers, "B": s.blocks, "H": s.heads, "N": s.page, "C": s.both}

    def _grid(self) -> int:
        """Letters up to the inner one of L and B."""
        return max(self.order.index("L"), self.order.index("B")) + 1

    def sizes(self, s: Shape) -> list[int]:
        size = self._sizes(s)
        tail, grid = 1, 1
        for letter in self.order[self._grid() :]:
            tail *= size[letter]
        for letter in self.order[: self._grid()]:
            grid *= size[letter]
        whole = grid * (tail + s.pad)
        return [whole // s.layers] * s.layers if self.order[0] == "L" else [whole]

    def cache(self, s: Shape, memory: list[Tensor], plane: Plane, layer: int) -> Tensor:
        size = self._sizes(s)
        per_layer = self.order[0] == "L"
        outer = self.order[1 if per_layer else 0 : self._grid()]
        tail = self.order[self._grid() :]
        raw = memory[layer if per_layer else 0].view(*(size[letter] for letter in outer), -1)
        raw = raw[..., : raw.shape[-1] - s.pad].unflatten(-1, [size[letter] for letter in tail])
        letters = outer + tail
        if not per_layer:
            raw = raw.select(letters.index("L"), layer)
            letters = letters.replace("L", "")
        logical = raw.permute([letters.index(letter) for letter in "BHNC"])
        start, stop = dict(self.content(s))[plane.name]
        return numbers(logical[..., start:stop], plane)

    def content(self, s: Shape) -> Iterator[tuple[str, tuple[int, int]]]:
        """Where in C each plane lies."""
        start = 0
        names = [plane.name for plane in s.geometry.planes]
        for name in ["k", "k_scale", "v", "v_scale"] if "k_scale" in names else names:
            yield name, (start, start + s.bytes(name))
            start += s.bytes(name)

    def strides(self, s: Shape) -> dict[str, int]:
        if not s.pad:
            return {}
        page = s.heads * s.page * s.both + s.pad
        return {"block": page} if self.order[0] == "L" else {"layer": page, "block": s.layers * page}


@dataclass(frozen=True)
class CpuVec(Form):
    """v1/attention/backends/cpu_attn.py views [B, H, N, 2 D] as [B, H, 2 N, D] and halves it; then per block and head
    K is column-major [D, N], V row-major [N, D] (csrc/cpu/cpu_attn_vec.hpp).

    Checked against torch.ops._C.cpu_attn_reshape_and_cache of 0.32.0, as are vec16 and amx: test_engine_definitions.py.
    """

    def sizes(self, s: Shape) -> list[int]:
        return [s.blocks * (s.heads * s.page * s.both + s.pad)] * s.layers

    def half(self, s: Shape, memory: list[Tensor], plane: Plane, layer: int) -> Tensor:
        """[B, H, N * D]: all of K, or all of V, of a block and head."""
        blocks = memory[layer].view(s.blocks, -1)[:, : s.heads * s.page * s.both]
        key_cache, value_cache = blocks.unflatten(1, (s.heads, 2, -1)).unbind(2)
        return numbers(key_cache if plane.name == "k" else value_cache, plane)

    def cache(self, s: Shape, memory: list[Tensor], plane: Plane, layer: int) -> Tensor:
        half = self.half(s, memory, plane, layer)
        if plane.name == "k":
            return half.unflatten(2, (plane.width, s.page)).transpose(2, 3)
        return half.unflatten(2, (s.page, plane.width))

    def strides(self, s: Shape) -> dict[str, int]:
        return {"block": s.heads * s.page * s.both + s.pad} if s.pad else {}


@dataclass(frozen=True)
class CpuAmx(CpuVec):
    """csrc/cpu/cpu_attn_amx.hpp: K [N/16, D/2, 16, 2], V [D/16, N/2, 16, 2]; fp8 in pairs too."""

    rows: int = 16

    def cache(self, s: Shape, memory: list[Tensor], plane: Plane, layer: int) -> Tensor:
        half, rows = self.half(s, memory, plane, layer), self.rows
        if plane.name == "k":
            return half.unflatten(2, (s.page // rows, plane.width // 2, rows, 2))
        return half.unflatten(2, (plane.width // rows, s.page // 2, rows, 2))

    def write(self, s: Shape, cache: Tensor, plane: Plane, block: Tensor, head: Tensor, at: Tensor, x: Tensor) -> None:
        if plane.name == "k":
            cache[block, head, at // self.rows, :, at % self.rows] = x.unflatten(-1, (-1, 2))
        else:
            cache[block, head, :, at // 2, :, at % 2] = x.unflatten(-1, (-1, self.rows))


@dataclass(frozen=True)
class CpuNeon(CpuVec):
    """csrc/cpu/cpu_attn_neon_bfmmla.hpp, reshape_and_cache: K [N/8, D/4, 8, 4], V [D/2, N/4, 2, 4]. Read, not run."""

    def cache(self, s: Shape, memory: list[Tensor], plane: Plane, layer: int) -> Tensor:
        half = self.half(s, memory, plane, layer)
        if plane.name == "k":
            return half.unflatten(2, (s.page // 8, plane.width // 4, 8, 4))
        return half.unflatten(2, (plane.width // 2, s.page // 4, 2, 4))

    def write(self, s: Shape, cache: Tensor, plane: Plane, block: Tensor, head: Tensor, at: Tensor, x: Tensor) -> None:
        if plane.name == "k":
            cache[block, head, at // 8, :, at % 8] = x.unflatten(-1, (-1, 4))
        else:
            cache[block, head, :, at // 4, :, at % 4] = x.unflatten(-1, (-1, 2))


@dataclass(frozen=True)
class TwoSlots(Form):
    """K and V as two head slots of H * D each: on LHBNC [2, B, N, H * D], on LBHNC [B, 2, N, H * D]. Older versions had
    these shapes as such (get_kv_cache_shape, get_kv_cache_stride_order of 0.11), NHD or HND within.
    """

    blocks_first: bool = False
    hnd: bool = False

    def sizes(self, s: Shape) -> list[int]:
        return [s.slots * s.heads * s.both] * s.layers

    def side(self, s: Shape, memory: list[Tensor], plane: Plane, layer: int) -> Tensor:
        """[B, N * H * D] of K or of V."""
        shape = (s.blocks, 2, -1) if self.blocks_first else (2, s.blocks, -1)
        kv_cache = numbers(memory[layer], plane).view(shape)
        return kv_cache.select(1 if self.blocks_first else 0, 0 if plane.name == "k" else 1)

    def cache(self, s: Shape, memory: list[Tensor], plane: Plane, layer: int) -> Tensor:
        side = self.side(s, memory, plane, layer)
        if self.hnd:
            return side.unflatten(1, (s.heads, s.page, plane.width))
        return side.unflatten(1, (s.page, s.heads, plane.width)).transpose(1, 2)


@dataclass(frozen=True)
class Rocm(TwoSlots):
    """v1/attention/ops/paged_attn.py, split_kv_cache: K [B, H, D/x, N, x], V [B, H, D, N], x elements fill 16 bytes;
    written as by reshape_and_cache_kernel_flash with USE_HEAD_MAJOR_LAYOUT (triton_reshape_and_cache_flash.py).
    Checked against split_kv_cache of 0.32.0: test_engine_definitions.py.
    """

    def cache(self, s: Shape, memory: list[Tensor], plane: Plane, layer: int) -> Tensor:
        side, x = self.side(s, memory, plane, layer), 16 // plane.itemsize
        if plane.name == "k":
            return side.unflatten(1, (s.heads, plane.width // x, s.page, x))
        return side.unflatten(1, (s.heads, plane.width, s.page))

    def write(self, s: Shape, cache: Tensor, plane: Plane, block: Tensor, head: Tensor, at: Tensor, x: Tensor) -> None:
        if plane.name == "k":
            cache[block, head, :, at] = x.unflatten(-1, (-1, 16 // plane.itemsize))
        else:
            cache[block, head, :, at] = x


@dataclass(frozen=True)
class Aiter(TwoSlots):
    """v1/attention/backends/rocm_aiter_fa.py, reshape_and_cache_shuffle_kernel: K [B, H, D/x, N, x],
    V [B, H, N/x, D, x]. A Triton kernel for AMD: read, not run; its address arithmetic, line by line, is in
    test_engine_definitions.py.
    """

    def cache(self, s: Shape, memory: list[Tensor], plane: Plane, layer: int) -> Tensor:
        side, x = self.side(s, memory, plane, layer), 16 // plane.itemsize
        if plane.name == "k":
            return side.unflatten(1, (s.heads, plane.width // x, s.page, x))
        return side.unflatten(1, (s.heads, s.page // x, plane.width, x))

    def write(self, s: Shape, cache: Tensor, plane: Plane, block: Tensor, head: Tensor, at: Tensor, x: Tensor) -> None:
        tile = 16 // plane.itemsize
        if plane.name == "k":
            cache[block, head, :, at] = x.unflatten(-1, (-1, tile))
        else:
            cache[block, head, at // tile, :, at % tile] = x


VLLM_FORMS = (
    Packed("vllm_lbhnc", padded=True, order="LBHNC"),
    Packed("vllm_lbnhc", padded=True, order="LBNHC"),
    Packed("vllm_lhbnc", order="LHBNC"),
    Packed("vllm_blhnc", padded=True, order="BLHNC"),
    Packed("vllm_blnhc", padded=True, order="BLNHC"),
    Packed("vllm_bhlnc", order="BHLNC"),
    CpuVec("vllm_cpu_vec", equal=True, padded=True),
    CpuVec("vllm_cpu_vec16", equal=True, padded=True),
    CpuAmx("vllm_cpu_amx", equal=True, padded=True, tokens=(16, 0)),
    CpuNeon("vllm_cpu_neon", equal=True, padded=True, tokens=(8, 0)),
    Packed("vllm_mla", kinds=("mla",), padded=True, order="LBHNC"),
    Packed("vllm_lbhnc_scaled", kinds=("scaled",), padded=True, order="LBHNC"),
    Packed("vllm_lbnhc_scaled", kinds=("scaled",), padded=True, order="LBNHC"),
    Rocm("vllm_rocm", equal=True),
    Rocm("vllm_rocm_lbhnc", equal=True, blocks_first=True),
    Aiter("vllm_aiter", equal=True, tokens=(0, 16)),
    Aiter("vllm_aiter_lbhnc", equal=True, blocks_first=True, tokens=(0, 16)),
    TwoSlots("vllm_2bnhd", equal=True),
    TwoSlots("vllm_2bhnd", equal=True, hnd=True),
    TwoSlots("vllm_b2nhd", equal=True, blocks_first=True),
    TwoSlots("vllm_b2hnd", equal=True, blocks_first=True, hnd=True),
)
