"""What every golden form has: sizes of the engine's allocations, and how the engine itself addresses one of them."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from kvlingua.layouts import Extent, Geometry, Plane

BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32}
Tensor = torch.Tensor


@dataclass(frozen=True)
class Shape:
    """What a pool holds. pad: bytes between blocks, or behind a row of tokens, that belong to nobody."""

    geometry: Geometry
    extent: Extent
    page: int
    blocks: int
    pad: int = 0

    @property
    def heads(self) -> int:
        return self.extent.heads

    @property
    def layers(self) -> int:
        return self.extent.layers

    @property
    def slots(self) -> int:
        return self.blocks * self.page

    def bytes(self, plane: str) -> int:
        """Bytes of one head of one token."""
        found = self.geometry.plane(plane)
        return found.width * found.itemsize

    @property
    def both(self) -> int:
        """Bytes of one head of one token, all planes."""
        return sum(self.bytes(plane.name) for plane in self.geometry.planes)


def numbers(raw: Tensor, plane: Plane) -> Tensor:
    """Bytes [..., n] as bits of the plane's type [..., n / itemsize]."""
    return raw.view(BITS[plane.itemsize])


@dataclass(frozen=True)
class Form:
    """An engine's own definition of one of its caches. Memory is bytes, one flat tensor per allocation.

    kinds: sets of planes that the engine keeps so. equal: its K and V are equally wide. has_blocks: else there is one
    block, whose page is the tokens held. padded: its blocks may have padding between them.
    """

    name: str
    kinds: tuple[str, ...] = ("kv",)
    equal: bool = False
    has_blocks: bool = True
    padded: bool = False
    tokens: tuple[int, int] = field(default=(1, 0))
    """Tokens that a page must be a multiple of: a number, or if that is 0 as many as fill so many bytes."""

    def page_multiple(self, itemsize: int) -> int:
        return self.tokens[0] or max(1, self.tokens[1] // itemsize)

    def sizes(self, s: Shape) -> list[int]:
        """Bytes of each allocation."""
        raise AssertionError(self.name)

    def cache(self, s: Shape, memory: list[Tensor], plane: Plane, layer: int) -> Tensor:
        """The engine's own tensor of a plane and layer (counted from the extent's first), blocks and heads first."""
        raise AssertionError(self.name)

    def write(self, s: Shape, cache: Tensor, plane: Plane, block: Tensor, head: Tensor, at: Tensor, x: Tensor) -> None:
        """Put x [T, heads, width] into `cache`; block, at [T, 1]; head [1, heads]. As the engine's own writer does."""
        cache[block, head, at] = x

    def buffers(self, s: Shape, memory: list[Tensor]) -> list[Tensor]:
        """The tensors that our row takes, from their first element on, in its order."""
        return memory

    def strides(self, s: Shape) -> dict[str, int]:
        """Bytes that the engine's tensors claim, where they aren't dense."""
        return {}
