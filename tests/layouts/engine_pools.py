"""Caches as the engines define them, filled by plain torch indexing: golden forms, independent of our notation.

The definitions are in engine_pools_vllm.py, engine_pools_sglang.py and engine_pools_others.py. Everything holds bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from kvlingua.layouts import Buffer, Extent, Geometry, Plane, Pool, format
from tests.layouts.engine_pools_form import Form, Shape, numbers
from tests.layouts.engine_pools_others import OTHER_FORMS
from tests.layouts.engine_pools_sglang import SGLANG_FORMS
from tests.layouts.engine_pools_vllm import VLLM_FORMS

GOLDEN: Mapping[str, Form] = {form.name: form for form in (*OTHER_FORMS, *VLLM_FORMS, *SGLANG_FORMS)}
"""The golden form of each row."""

Content = Mapping[tuple[str, int], torch.Tensor]
"""(plane, layer of the model) -> [T, heads of the model, width]; T or heads is 1 for scales that don't have them."""

NOISE = torch.randint(0, 256, ((1 << 22) + 9973,), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def random_bytes(count: int, seed: int) -> torch.Tensor:
    """Random bytes, on a cache line: NaNs and infinities among the numbers they make."""
    noise = NOISE[seed * 7919 % 9973 :]
    return noise[:count].clone() if count <= len(noise) else noise.repeat(-(-count // len(noise)))[:count]


def random_bits(*shape: int, itemsize: int, seed: int) -> torch.Tensor:
    """Random bits of numbers of that size."""
    count = itemsize
    for size in shape:
        count *= size
    return random_bytes(count, seed).view({1: torch.uint8, 2: torch.int16, 4: torch.int32}[itemsize]).view(shape)


def random_content(geometry: Geometry, tokens: int, seed: int) -> Content:
    """Random KV of a whole model."""
    generator = torch.Generator().manual_seed(seed)
    content = {}
    for plane in geometry.planes:
        rows = tokens if plane.per == "token" else 1
        heads = 1 if plane.per == "tensor" else geometry.kv_heads
        shape = geometry.layers, rows, heads, plane.width * plane.itemsize
        layers = numbers(torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator), plane)
        content |= {(plane.name, layer): layers[layer] for layer in range(geometry.layers)}
    return content


@dataclass
class EnginePool:
    """Memory of one engine: `memory` are whole allocations of bytes, with guard elements around what is used.

    pad: elements between blocks that belong to nobody (of `hf`: tokens beyond those held); only for padded forms.
    guard: elements; torch's memory begins on a cache line, so that this decides on which 16, 32 or 64 bytes ours does.
    An element is one of the widest type that the planes have.
    static: the scales lie outside of the cache, on the engine's layers, one per head or one for all.
    """

    name: str
    geometry: Geometry
    extent: Extent
    page: int
    blocks: int
    pad: int = 0
    seed: int = 0
    guard: int = 24
    static: bool = False

    def __post_init__(self) -> None:
        self.form = GOLDEN[self.name]
        unit = max(plane.itemsize for plane in self.geometry.planes)
        pad = self.pad * (unit if self.form.has_blocks else 1)
        held = replace(self.geometry, planes=self.geometry.numbers) if self.static else self.geometry
        self.shape = Shape(held, self.extent, self.page, self.blocks, pad)
        self.memory: list[torch.Tensor] = []
        edge = self.guard * unit

        def allocate(size: int) -> torch.Tensor:
            whole = random_bytes(size + 2 * edge, 1000 * (self.seed + 1) + len(self.memory))
            self.memory.append(whole)
            return whole[edge : edge + size]

        self.used = [allocate(size) for size in self.form.sizes(self.shape)]
        self.scales: dict[str, list[torch.Tensor]] = {}
        for plane in self.geometry.planes[len(held.planes) :]:
            heads = 1 if plane.per == "tensor" else self.extent.heads
            self.scales[plane.name] = [allocate(4 * heads) for _ in range(self.extent.layers)]

    def clone(self) -> EnginePool:
        """The same pool with memory of its own."""
        twin = replace(self)
        for ours, theirs in zip(self.memory, twin.memory, strict=True):
            theirs.copy_(ours)
        return twin

    def put(self, content: Content, table: list[int], start: int, part: Extent) -> None:
        """Write `content` to the positions from `start` on of the sequence `table`, for heads and layers of `part`."""
        tokens = len(content[self.geometry.numbers[0].name, 0])
        position = torch.arange(start, start + tokens)[:, None]
        block, at = torch.tensor(table)[position // self.page], position % self.page
        head = torch.arange(part.head_start, part.head_stop)[None, :]
        for plane in self.shape.geometry.planes:
            for layer in range(part.layer_start, part.layer_stop):
                self._put(plane, layer, block, head, at, content[plane.name, layer])

    def _put(
        self, plane: Plane, layer: int, block: torch.Tensor, head: torch.Tensor, at: torch.Tensor, rows: torch.Tensor
    ) -> None:
        heads = head[0] if rows.shape[1] > 1 else torch.zeros(1, dtype=torch.int64)
        x = rows[:, heads].expand(len(block), -1, -1)
        cache = self.form.cache(self.shape, self.used, plane, layer - self.extent.layer_start)
        self.form.write(self.shape, cache, plane, block, head - self.extent.head_start, at, x)

    def put_scales(self, content: Content) -> None:
        """Set the static scales, all of them."""
        for name, layers in self.scales.items():
            for index, scale in enumerate(layers):
                rows = content[name, self.extent.layer_start + index][0, :, 0]
                first = self.extent.head_start if len(rows) > 1 else 0
                bits = scale.view(torch.int32)
                bits.copy_(rows[first : first + len(bits)])

    def pool(self) -> Pool:
        """The same memory in our words, with the strides its tensors have."""
        return format(self.name).pool(
            self.geometry,
            self.extent,
            page=self.page,
            blocks=self.blocks,
            buffers=[_buffer(part) for part in self.form.buffers(self.shape, self.used)],
            strides=self.form.strides(self.shape),
            scales={name: [_buffer(scale) for scale in layers] for name, layers in self.scales.items()},
        )


def _buffer(part: torch.Tensor) -> Buffer:
    return Buffer(part.data_ptr(), part.nbytes, part)
