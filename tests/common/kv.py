"""A small namespace, and KV of it in the memory layouts of engines, for tests of the cache."""

import random
from array import array
from collections.abc import Collection

from kvlingua.common.cache import KVCache
from kvlingua.common.config import Config
from kvlingua.common.identity.namespace import Namespace
from kvlingua.layouts.formats import format
from kvlingua.layouts.geometry import Extent
from kvlingua.layouts.memory import Buffer
from kvlingua.layouts.view import Pool, View

CHUNK = 16
TOKENS = list(range(96))


def namespace(**changes: object) -> Namespace:
    """A small model of 3 layers and 4 kv heads, K 8 wide and V 12 wide, one head per shard."""
    values: dict[str, object] = {
        "fingerprint": "sha256:" + "ab" * 32,
        "model_config": {"model_type": "llama"},
        "overrides": {},
        "rope": {"theta": 10000.0, "rotary_dim": 8},
        "rope_order": "half",
        "compute_dtype": "float32",
        "weight_format": "float32",
        "quantization": None,
        "kv_dtype": "float32",
        "scales_policy": "none",
        "layers": 3,
        "kv_heads": 4,
        "planes": {"k": 8, "v": 12},
        "chunk_tokens": CHUNK,
        "heads_per_shard": 1,
        "layers_per_shard": 3,
    }
    return Namespace(**(values | changes))  # type: ignore[arg-type]


class Cache:
    """Memory for `tokens` tokens in a layout, filled with noise of `seed` or with bytes of 0x5A."""

    def __init__(
        self,
        namespace: Namespace,
        tokens: int,
        *,
        seed: int | None = None,
        extent: Extent | None = None,
        layout: str = "hf",
    ) -> None:
        self.tokens = tokens
        self.extent = namespace.geometry.full if extent is None else extent
        self.namespace, self.layout = namespace, layout
        geometry, row = namespace.geometry, Extent(self.extent.head_start, self.extent.head_stop, 0, 1)
        sizes = [geometry.elements(plane, row, tokens) * plane.itemsize for plane in geometry.planes]
        self.memory = [
            bytearray(self._noise(seed, layer, plane, nbytes))
            for layer in range(self.extent.layers)
            for plane, nbytes in enumerate(sizes)
        ]
        self._scales = self._static()

    @staticmethod
    def _noise(seed: int | None, layer: int, plane: int, nbytes: int) -> bytes:
        if seed is None:
            return b"\x5a" * nbytes
        return random.Random(f"{seed} {layer} {plane}").randbytes(nbytes)

    @property
    def pool(self) -> Pool:
        """Scales that are for all tokens are static ones, beside the blocks."""
        planes = self.namespace.geometry.planes
        buffers = [Buffer.of(memory) for memory in self.memory]
        scales = {
            plane.name: buffers[number :: len(planes)] for number, plane in enumerate(planes) if plane.per != "token"
        }
        return format(self.layout).pool(
            self.namespace.geometry,
            self.extent,
            page=self.tokens,
            blocks=1,
            buffers=[one for number, one in enumerate(buffers) if planes[number % len(planes)].name not in scales],
            scales=scales,
        )

    def view(self, start: int = 0, stop: int | None = None) -> View:
        return self.pool.view(array("q", [0]), start, self.tokens if stop is None else stop)

    def part(self, extent: Extent) -> "Cache":
        """A copy of the heads and layers that `extent` holds."""
        part = Cache(self.namespace, self.tokens, extent=extent, layout=self.layout)
        planes = self.namespace.geometry.planes
        for index, memory in enumerate(part.memory):
            layer, plane = index // len(planes) + extent.layer_start - self.extent.layer_start, index % len(planes)
            whole = self.memory[layer * len(planes) + plane]
            heads = 1 if planes[plane].per == "tensor" else self.extent.heads
            first = 0 if planes[plane].per == "tensor" else extent.head_start - self.extent.head_start
            start = first * (len(whole) // heads)
            memory[:] = whole[start : start + len(memory)]
        return part

    def emptied(self) -> "Cache":
        """Another with the same static scales, and bytes of 0x5A for numbers."""
        planes = self.namespace.geometry.planes
        other = Cache(self.namespace, self.tokens, extent=self.extent, layout=self.layout)
        for number, memory in enumerate(other.memory):
            if planes[number % len(planes)].per != "token":
                memory[:] = self.memory[number]
        other._scales = other._static()
        return other

    def _static(self) -> list[bytes]:
        """The scales that are for all tokens, layer after layer."""
        planes = self.namespace.geometry.planes
        return [
            bytes(memory) for number, memory in enumerate(self.memory) if planes[number % len(planes)].per != "token"
        ]

    def bytes_of(self, token: int, layer: int, plane: int, head: int) -> bytes:
        """One row [dim] of a plane per token in the layout `hf`: [head, token, dim] per layer and plane."""
        planes = self.namespace.geometry.planes
        width = planes[plane].width * planes[plane].itemsize
        start = (head * self.tokens + token) * width
        return bytes(self.memory[layer * len(planes) + plane][start : start + width])

    def same_tokens(self, other: "Cache", start: int, stop: int) -> bool:
        """Whether both hold the same bytes for tokens [start, stop), in every plane, and the same static scales."""
        return self._static() == other._static() and self._same_rows(other, start, stop)

    def _same_rows(self, other: "Cache", start: int, stop: int) -> bool:
        per_token = [number for number, plane in enumerate(self.namespace.geometry.planes) if plane.per == "token"]
        return all(
            self.bytes_of(token, layer, plane, head) == other.bytes_of(token, layer, plane, head)
            for token in range(start, stop)
            for layer in range(self.extent.layers)
            for plane in per_token
            for head in range(self.extent.heads)
        )

    def untouched(self, start: int = 0, stop: int | None = None) -> bool:
        """Whether tokens [start, stop) are still bytes of 0x5A, and static scales what they were at the beginning."""
        stop = self.tokens if stop is None else stop
        blank = Cache(self.namespace, self.tokens, extent=self.extent)
        return self._static() == self._scales and self._same_rows(blank, start, stop)

    def holds_at_most(self, other: "Cache", chunks: Collection[int]) -> bool:
        """Whether each chunk is still bytes of 0x5A, as a whole, or one of `chunks` and as in `other`.

        Static scales are what they were at the beginning, and those of `other` where it holds one of its chunks.
        """
        return all(
            self.untouched(chunk * CHUNK, (chunk + 1) * CHUNK)
            or (chunk in chunks and self.same_tokens(other, chunk * CHUNK, (chunk + 1) * CHUNK))
            for chunk in range(self.tokens // CHUNK)
        )


def fill(url: str) -> None:
    """Store TOKENS with noise of seed 1, however slow the machine is."""
    with KVCache.open(Config(url=url, lookup_timeout_s=30)) as cache:
        handle = cache.store(namespace(), TOKENS, Cache(namespace(), 96, seed=1).view(), 0, 96)
        assert handle.committed.wait(30)
        assert (handle.stored, handle.error) == (6, None)
