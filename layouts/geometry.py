"""What a model's KV cache consists of: planes, kv heads, layers, dtypes, and which part of them a cache holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from kvlingua.layouts.dtypes import DTYPES, ITEMSIZE
from kvlingua.layouts.errors import LayoutError
from kvlingua.layouts.whole import keep_whole

__all__ = ["ITEMSIZE", "UNROTATED", "Extent", "Geometry", "Plane", "Rope"]

MAX_WIDTH = 1 << 16
"""No plane is wider; a plan looks at each element of a row once."""

MAX_COUNT = 1 << 16
"""No model has more layers or kv heads; a plan looks at each layer once."""

Per = Literal["token", "head", "tensor"]
Order = Literal["none", "half", "interleaved"]


@dataclass(frozen=True, slots=True)
class Rope:
    """Which dims of a plane are rotated, and in which order they stand: the first `width` ones, in pairs.

    half: dim i is rotated with dim i + width / 2. interleaved: dim 2i with dim 2i + 1. none: nothing is known to be
    rotated, or no two engines differ in it; such a plane is never permuted.
    """

    order: Order = "none"
    width: int = 0

    def __post_init__(self) -> None:
        if self.order not in ("none", "half", "interleaved"):
            raise LayoutError(f"the order of rotated dims is half, interleaved or none, not {self.order!r}")
        if not keep_whole(self, "width"):
            raise LayoutError(f"the number of rotated dims is a whole number, not {self.width!r}")
        if (self.order == "none") != (self.width == 0) or self.width < 0 or self.width % 2:
            raise LayoutError(
                f"rotated dims come in pairs (and there are none exactly if the order is none), not {self.width} of"
                f" order {self.order!r}"
            )


UNROTATED = Rope()


@dataclass(frozen=True, slots=True)
class Plane:
    """One kind of number a cache keeps: `k`, `v`, `latent`, ... `width` is its elements along `dim`.

    per: "token": a value for every layer, head and token; "head": for every layer and head; "tensor": for every layer.
    A plane called `X_scale` holds the scales of plane `X`: number * scale is the value.
    """

    name: str
    width: int
    dtype: str
    per: Per = "token"
    rope: Rope = UNROTATED

    def __post_init__(self) -> None:
        if not self.name.isidentifier():
            raise LayoutError(f"a plane's name must be an identifier like 'k', not {self.name!r}")
        if not keep_whole(self, "width") or not 1 <= self.width <= MAX_WIDTH:
            raise LayoutError(f"plane {self.name!r} must be 1 to {MAX_WIDTH} elements wide, not {self.width!r}")
        if not isinstance(self.dtype, str) or self.dtype not in DTYPES:
            raise _unknown_dtype(self.dtype)
        if self.per not in ("token", "head", "tensor"):
            raise LayoutError(f"plane {self.name!r} has a value per token, head or tensor, not per {self.per!r}")
        if self.per != "token" and not self.is_scale:
            raise LayoutError(f"plane {self.name!r} has one value per {self.per}: only scales may (as k_scale)")
        if self.rope.width > self.width:
            raise LayoutError(f"plane {self.name!r} is {self.width} wide, so {self.rope.width} dims can't be rotated")
        if self.rope.width and self.is_scale:
            raise LayoutError(f"plane {self.name!r} holds scales, which aren't rotated")

    @property
    def itemsize(self) -> int:
        """Bytes per element."""
        return ITEMSIZE[self.dtype]

    @property
    def is_scale(self) -> bool:
        """Whether it holds the scales of another plane."""
        return self.name.endswith("_scale")


@dataclass(frozen=True, slots=True, order=True)
class Extent:
    """A rectangle of kv heads and layers, half-open, counted in the whole model whatever the parallelism."""

    head_start: int
    head_stop: int
    layer_start: int
    layer_stop: int

    def __post_init__(self) -> None:
        bounds = self.head_start, self.head_stop, self.layer_start, self.layer_stop
        if not keep_whole(self, "head_start", "head_stop", "layer_start", "layer_stop"):
            raise LayoutError(f"an extent is four whole numbers, not {bounds}")
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
    """The KV cache of a WHOLE model: layers, kv heads, planes in order."""

    layers: int
    kv_heads: int
    planes: tuple[Plane, ...]

    def __post_init__(self) -> None:
        for what in ("layers", "kv_heads"):
            if not keep_whole(self, what) or not 1 <= getattr(self, what) <= MAX_COUNT:
                raise LayoutError(f"{what} is a whole number from 1 to {MAX_COUNT}, not {getattr(self, what)!r}")
        if not isinstance(self.planes, (list, tuple)) or not all(isinstance(plane, Plane) for plane in self.planes):
            raise LayoutError(
                f"planes are a tuple of Plane, as (Plane('k', 128, 'bfloat16'), ...), not {self.planes!r}"
            )
        object.__setattr__(self, "planes", tuple(self.planes))
        names = [plane.name for plane in self.planes]
        if not self.numbers or len(set(names)) != len(names):
            raise LayoutError(f"a geometry needs planes with names of their own, scales aside, not {names}")
        if len({plane.dtype for plane in self.numbers}) != 1:
            found = ", ".join(f"{plane.name} {plane.dtype}" for plane in self.numbers)
            raise LayoutError(f"the planes of a geometry share one dtype, scales aside, not {found}")
        for plane in self.planes:
            if plane.is_scale:
                self._check_scale(plane)

    def _check_scale(self, plane: Plane) -> None:
        of = plane.name.removesuffix("_scale")
        if of not in (number.name for number in self.numbers):
            raise LayoutError(f"plane {plane.name!r} holds the scales of a plane {of!r}, which there isn't")
        dtype = DTYPES[self.dtype]
        if dtype.is_number and not dtype.is_fp8:
            raise LayoutError(f"numbers of {self.dtype} have no scales, so plane {plane.name!r} can't be")
        if dtype.is_fp8 and (plane.dtype, plane.width) != ("float32", 1):
            raise LayoutError(
                f"the scales of {self.dtype} are float32 and 1 wide, plane {plane.name!r} is {plane.dtype} and"
                f" {plane.width} wide"
            )

    @classmethod
    def kv(
        cls,
        layers: int,
        kv_heads: int,
        head_dim: int,
        dtype: str,
        v_dim: int | None = None,
        *,
        scales: Per | None = None,
        rope: Rope = UNROTATED,
    ) -> Geometry:
        """A model with planes `k` and `v`, and `k_scale` and `v_scale` where `scales` says per what there is one.

        v_dim: only where V's heads are of another width than K's. rope: of K.
        """
        numbers = Plane("k", head_dim, dtype, rope=rope), Plane("v", head_dim if v_dim is None else v_dim, dtype)
        return cls(layers, kv_heads, numbers + _scales(numbers, scales))

    @classmethod
    def mla(
        cls,
        layers: int,
        latent: int,
        rope_width: int,
        dtype: str,
        *,
        rope: Rope = UNROTATED,
        scales: Per | None = None,
    ) -> Geometry:
        """A model with latent attention: planes `latent` and `rope` (all of its dims rotated), 1 kv head."""
        numbers = Plane("latent", latent, dtype), Plane("rope", rope_width, dtype, rope=rope)
        return cls(layers, 1, numbers + _scales(numbers, scales))

    @property
    def numbers(self) -> tuple[Plane, ...]:
        """The planes that aren't scales."""
        return tuple(plane for plane in self.planes if not plane.is_scale)

    @property
    def dtype(self) -> str:
        """The type of all planes that aren't scales."""
        return self.numbers[0].dtype

    @property
    def scales_per(self) -> Per | None:
        """What of the numbers shares a scale; None if there are none."""
        scale = self.scale(self.numbers[0])
        return None if scale is None else scale.per

    @property
    def full(self) -> Extent:
        """All heads and layers."""
        return Extent(0, self.kv_heads, 0, self.layers)

    def plane(self, name: str) -> Plane:
        """The plane called `name`; LayoutError names the known ones."""
        for plane in self.planes:
            if plane.name == name:
                return plane
        raise LayoutError(f"there is no plane {name!r}, there are {', '.join(plane.name for plane in self.planes)}")

    def scale(self, plane: Plane) -> Plane | None:
        """The plane that holds the scales of `plane`, if there is one."""
        return next((scale for scale in self.planes if scale.name == f"{plane.name}_scale"), None)

    def elements(self, plane: Plane, extent: Extent, tokens: int) -> int:
        """Elements that `tokens` tokens of a plane take in all heads and layers of `extent`."""
        heads = 1 if plane.per == "tensor" else extent.heads
        return plane.width * extent.layers * heads * (tokens if plane.per == "token" else 1)

    def block_bytes(self, extent: Extent, tokens: int) -> int:
        """Bytes of a block of `tokens` tokens: all planes, heads and layers of `extent`, padding not counted."""
        return sum(self.elements(plane, extent, tokens) * plane.itemsize for plane in self.planes)


def _scales(numbers: tuple[Plane, ...], per: Per | None) -> tuple[Plane, ...]:
    return tuple(Plane(f"{plane.name}_scale", 1, "float32", per) for plane in numbers) if per else ()


def _unknown_dtype(dtype: object) -> LayoutError:
    meant = getattr(dtype, "__name__", str(dtype)).removeprefix("torch.")
    if meant in DTYPES:
        return LayoutError(f"a dtype is known by its name: write {meant!r} instead of {dtype!r}")
    return LayoutError(f"dtype {dtype!r} isn't known; known are {', '.join(DTYPES)}")
