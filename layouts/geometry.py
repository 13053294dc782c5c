"""What a model's KV cache consists of: planes, kv heads, layers, dtype, and which part of them a cache holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from kvlingua.layouts.errors import LayoutError

ITEMSIZE: Mapping[str, int] = MappingProxyType({"float32": 4, "float16": 2, "bfloat16": 2})
"""Bytes per element of each known dtype."""


@dataclass(frozen=True, slots=True)
class Plane:
    """One kind of number a cache keeps per token, head and layer: `k` or `v`. `width` is its elements along `dim`."""

    name: str
    width: int

    def __post_init__(self) -> None:
        if not self.name.isidentifier():
            raise LayoutError(f"a plane's name must be an identifier like 'k', not {self.name!r}")
        if self.width < 1:
            raise LayoutError(f"plane {self.name!r} must be at least 1 element wide, not {self.width}")


@dataclass(frozen=True, slots=True, order=True)
class Extent:
    """A rectangle of kv heads and layers, half-open, counted in the whole model whatever the parallelism."""

    head_start: int
    head_stop: int
    layer_start: int
    layer_stop: int

    def __post_init__(self) -> None:
        if not (0 <= self.head_start < self.head_stop and 0 <= self.layer_start < self.layer_stop):
            raise LayoutError(f"an extent holds at least one head and one layer, from 0 on: {self} does not")

    def __str__(self) -> str:
        return f"heads {self.head_start}-{self.head_stop}, layers {self.layer_start}-{self.layer_stop}"

    @property
    def heads(self) -> int:
        """Number of kv heads."""
        return self.head_stop - self.head_start

    @property
    def layers(self) -> int:
        """Number of layers."""
        return self.layer_stop - self.layer_start

    def contains(self, other: Extent) -> bool:
        """Whether every head of every layer of `other` is in this extent."""
        return (
            self.head_start <= other.head_start
            and other.head_stop <= self.head_stop
            and self.layer_start <= other.layer_start
            and other.layer_stop <= self.layer_stop
        )

    def intersect(self, other: Extent) -> Extent | None:
        """What both hold; None if that is nothing."""
        heads = max(self.head_start, other.head_start), min(self.head_stop, other.head_stop)
        layers = max(self.layer_start, other.layer_start), min(self.layer_stop, other.layer_stop)
        return Extent(*heads, *layers) if heads[0] < heads[1] and layers[0] < layers[1] else None


@dataclass(frozen=True, slots=True)
class Geometry:
    """The KV cache of a WHOLE model: layers, kv heads, planes in order, dtype (a key of `ITEMSIZE`)."""

    layers: int
    kv_heads: int
    planes: tuple[Plane, ...]
    dtype: str

    def __post_init__(self) -> None:
        if self.layers < 1 or self.kv_heads < 1:
            raise LayoutError(f"a model has layers and kv heads, not {self.layers} and {self.kv_heads}")
        names = [plane.name for plane in self.planes]
        if not names or len(set(names)) != len(names):
            raise LayoutError(f"a geometry needs planes with names of their own, not {names}")
        if self.dtype not in ITEMSIZE:
            raise LayoutError(f"dtype {self.dtype!r} isn't known; known are {', '.join(ITEMSIZE)}")

    @classmethod
    def kv(cls, layers: int, kv_heads: int, head_dim: int, dtype: str, v_dim: int | None = None) -> Geometry:
        """A model with planes `k` and `v`; `v_dim` only where V's heads are of another width than K's."""
        planes = Plane("k", head_dim), Plane("v", head_dim if v_dim is None else v_dim)
        return cls(layers, kv_heads, planes, dtype)

    @property
    def itemsize(self) -> int:
        """Bytes per element."""
        return ITEMSIZE[self.dtype]

    @property
    def full(self) -> Extent:
        """All heads and layers."""
        return Extent(0, self.kv_heads, 0, self.layers)

    def token_bytes(self, extent: Extent) -> int:
        """Bytes that one token takes in all planes, heads and layers of `extent`, padding not counted."""
        return sum(plane.width for plane in self.planes) * self.itemsize * extent.heads * extent.layers
