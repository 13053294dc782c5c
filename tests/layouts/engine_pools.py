"""Caches as the engines define them, filled by plain torch indexing: golden forms, independent of our notation.

Everything holds bits (int16 or int32), one tensor [T, heads, width] per layer and plane going in.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch

from kvlingua.layouts import Buffer, Extent, Geometry, Pool, format

BITS = {2: torch.int16, 4: torch.int32}
Content = Mapping[tuple[str, int, int], torch.Tensor]
"""(plane, layer of the model, head of the model) -> [T, width]"""


def random_bits(*shape: int, itemsize: int, seed: int) -> torch.Tensor:
    """Random bits, NaNs and infinities among them."""
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randint(0, 256, (*shape, itemsize), dtype=torch.uint8, generator=generator)
    return numbers.view(BITS[itemsize]).squeeze(-1)


def random_content(geometry: Geometry, tokens: int, seed: int) -> Content:
    """Random KV of a whole model."""
    content = {}
    for index, plane in enumerate(geometry.planes):
        size = geometry.layers, geometry.kv_heads, tokens, plane.width
        numbers = random_bits(*size, itemsize=geometry.itemsize, seed=2 * seed + index)
        for layer in range(geometry.layers):
            for head in range(geometry.kv_heads):
                content[plane.name, layer, head] = numbers[layer, head]
    return content


@dataclass
class EnginePool:
    """Memory of one engine: `memory` are whole allocations, with guard elements before and behind what is used.

    pad: elements between blocks that belong to nobody (for `hf`: tokens of a longer buffer behind each head).
    guard: elements; torch's memory begins on a cache line, so that this decides on which 16, 32 or 64 bytes ours does.
    """

    name: str
    geometry: Geometry
    extent: Extent
    page: int
    blocks: int
    pad: int = 0
    seed: int = 0
    guard: int = 24

    def __post_init__(self) -> None:
        self.k_dim, self.v_dim = (plane.width for plane in self.geometry.planes)
        self.memory: list[torch.Tensor] = []
        self.used: list[torch.Tensor] = []
        for index, size in enumerate(self._sizes()):
            whole = random_bits(
                size + 2 * self.guard, itemsize=self.geometry.itemsize, seed=1000 * (self.seed + 1) + index
            )
            self.memory.append(whole)
            self.used.append(whole[self.guard : self.guard + size])

    def clone(self) -> EnginePool:
        """The same pool with memory of its own."""
        twin = replace(self)
        for ours, theirs in zip(self.memory, twin.memory, strict=True):
            theirs.copy_(ours)
        return twin

    def _sizes(self) -> Iterator[int]:
        """Elements of each allocation."""
        heads, layers, both = self.extent.heads, self.extent.layers, self.k_dim + self.v_dim
        for _ in range(1 if self.name == "canonical" else layers):
            if self.name == "canonical":
                yield self.blocks * (heads * layers * self.page * both + self.pad)
            elif self.name == "hf":
                yield heads * (self.page + self.pad) * self.k_dim
                yield heads * (self.page + self.pad) * self.v_dim
            elif self.name == "sglang_nhd":  # token rows: slots follow each other without a gap
                yield self.blocks * self.page * heads * self.k_dim
                yield self.blocks * self.page * heads * self.v_dim
            elif self.name == "sglang_hnd":
                yield self.blocks * (heads * self.page * self.k_dim + self.pad)
                yield self.blocks * (heads * self.page * self.v_dim + self.pad)
            else:
                yield self.blocks * (heads * self.page * both + self.pad)

    def _blocks(self, memory: torch.Tensor) -> torch.Tensor:
        """[blocks, elements of a block without the padding]"""
        rows: torch.Tensor = memory.unflatten(0, (self.blocks, -1))
        return rows[:, : rows.shape[1] - self.pad]

    def put(self, content: Content, table: list[int], start: int, part: Extent) -> None:
        """Write `content` to the positions from `start` on of the sequence `table`, for heads and layers of `part`."""
        for layer in range(part.layer_start, part.layer_stop):
            for head in range(part.head_start, part.head_stop):
                k, v = content["k", layer, head], content["v", layer, head]
                position = torch.arange(start, start + len(k))
                block, offset = torch.tensor(table)[position // self.page], position % self.page
                self._put(k, v, layer - self.extent.layer_start, head - self.extent.head_start, block, offset)

    def _put(
        self, k: torch.Tensor, v: torch.Tensor, layer: int, head: int, block: torch.Tensor, at: torch.Tensor
    ) -> None:
        """One head of one layer; k [T, k_dim], v [T, v_dim], block and offset [T]."""
        heads, layers, page, dk, dv = self.extent.heads, self.extent.layers, self.page, self.k_dim, self.v_dim
        if self.name == "canonical":  # a chunk: K [head, layer, token, dim], then V likewise
            chunk = self._blocks(self.used[0])
            end = heads * layers * page * dk
            chunk[:, :end].unflatten(1, (heads, layers, page, dk))[block, head, layer, at] = k
            chunk[:, end:].unflatten(1, (heads, layers, page, dv))[block, head, layer, at] = v
        elif self.name == "hf":  # keys and values [head, token, dim] of a DynamicLayer; one block
            self.used[2 * layer].unflatten(0, (heads, page + self.pad, dk))[head, at] = k
            self.used[2 * layer + 1].unflatten(0, (heads, page + self.pad, dv))[head, at] = v
        elif self.name == "vllm_lbhnc":  # [B, H, N, C], K = [..., :D], V = [..., D:]
            cache = self._blocks(self.used[layer]).unflatten(1, (heads, page, dk + dv))
            cache[block, head, at, :dk] = k
            cache[block, head, at, dk:] = v
        elif self.name == "vllm_lbnhc":  # logically [B, H, N, C], in memory [B, N, H, C]
            cache = self._blocks(self.used[layer]).unflatten(1, (page, heads, dk + dv)).transpose(1, 2)
            cache[block, head, at, :dk] = k
            cache[block, head, at, dk:] = v
        elif self.name in ("vllm_cpu_vec", "vllm_cpu_vec16"):  # per block and head: K as [D, N], then V as [N, D]
            both = self._blocks(self.used[layer]).unflatten(1, (heads, page * (dk + dv)))
            both[:, :, : page * dk].unflatten(2, (dk, page)).transpose(2, 3)[block, head, at] = k
            both[:, :, page * dk :].unflatten(2, (page, dv))[block, head, at] = v
        elif self.name == "sglang_nhd":  # k_buffer[layer] [slot, head, dim]
            slot = block * page + at
            self.used[2 * layer].unflatten(0, (-1, heads, dk))[slot, head] = k
            self.used[2 * layer + 1].unflatten(0, (-1, heads, dv))[slot, head] = v
        elif self.name == "sglang_hnd":  # k_buffer[layer] [page number, head, token, dim]
            self._blocks(self.used[2 * layer]).unflatten(1, (heads, page, dk))[block, head, at] = k
            self._blocks(self.used[2 * layer + 1]).unflatten(1, (heads, page, dv))[block, head, at] = v
        else:
            raise AssertionError(f"no golden form of {self.name}")

    def pool(self) -> Pool:
        """The same memory in our words, with the strides its tensors have."""
        item = self.geometry.itemsize
        strides: dict[str, int] = {}
        if self.pad and self.name == "hf":
            strides = {
                "k.head": (self.page + self.pad) * self.k_dim * item,
                "v.head": (self.page + self.pad) * self.v_dim * item,
            }
        elif self.pad and self.name == "sglang_hnd":
            size = self.extent.heads * self.page * item
            strides = {
                "k.block": size * self.k_dim + self.pad * item,
                "v.block": size * self.v_dim + self.pad * item,
            }
        elif self.pad and self.name != "sglang_nhd":
            strides = {"block": len(self.used[0]) // self.blocks * item}
        buffers = [Buffer(part.data_ptr(), part.nbytes, part) for part in self.used]
        return format(self.name).pool(
            self.geometry, self.extent, page=self.page, blocks=self.blocks, buffers=buffers, strides=strides
        )
