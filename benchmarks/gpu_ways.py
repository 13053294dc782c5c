"""Conversions of a GPU's memory, each with the plain copy that it is measured against."""

from __future__ import annotations

import random
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from unittest.mock import patch

from benchmarks.baselines import Ratio, Run, interleaved
from benchmarks.gpu_machine import Machine
from kvlingua.layouts import Buffer, Geometry, View, convert, format, gpu

PAGE, CHUNK = 16, 64
LONG_S = 0.01
"""Copies that take longer are repeated less often."""

KERNELS = {"stage_bytes": 0, "piece_bytes": 0}
STAGED = {"stage_bytes": 1, "run_bytes": 0, "piece_bytes": 0}
PIECES = {"stage_bytes": 0, "piece_bytes": 1}
"""The three ways of reaching pinned memory, as layouts/tuning.toml would choose each."""


@dataclass(frozen=True)
class Model:
    """Of bf16, and the same in fp8 with a scale for each token and head."""

    layers: int = 32
    heads: int = 8
    dim: int = 128

    @property
    def whole(self) -> Geometry:
        return Geometry.kv(self.layers, self.heads, self.dim, "bfloat16")

    @property
    def small(self) -> Geometry:
        return Geometry.kv(self.layers, self.heads, self.dim, "float8_e4m3fn", scales="token")


@dataclass(frozen=True)
class Way:
    """A conversion. work: bytes it moves for each byte that `plain` moves, `nbytes` in all; tuned: over tuning.toml."""

    name: str
    kind: str
    run: Run
    plain: Run
    nbytes: int
    work: float = 1.0
    tuned: Mapping[str, int] = field(default_factory=dict)

    def measure(self, machine: Machine, rounds: int) -> dict[str, object]:
        """The ratio of both, round by round in turns, and the rate of the plain copy."""
        usual = gpu.tuned
        with patch.object(gpu, "tuned", lambda index: usual(index)._replace(**self.tuned)):
            ways = {"plain": self.plain, "conversion": self.run}
            first = interleaved(machine.clock, ways, min(3, rounds))  # not counted
            if min(first["plain"]) > LONG_S:
                rounds = -(-rounds // 2)
            times = interleaved(machine.clock, ways, rounds)
        ratio = Ratio.of(machine.clock, times["plain"], times["conversion"], self.work)
        plain, ours = (statistics.median(times[name]) for name in ways)
        return {
            "name": self.name,
            "kind": self.kind,
            **vars(ratio),
            "plain_ms": round(plain * 1e3, 4),
            "ms": round(ours * 1e3, 4),
            "plain_gb_s": round(self.nbytes / plain / 1e9, 1),
        }


def view(row: str, geometry: Geometry, tokens: int, buffer: Buffer, page: int, *, ordered: bool = False) -> View:
    """`tokens` tokens in a pool that fills the buffer, its blocks in random order unless `ordered`."""
    layout = format(row)
    if "block" not in layout.axes("k"):
        page = tokens
    count = 1
    for axis in layout.separate:
        count *= geometry.layers if axis == "layer" else 2
    part = geometry.block_bytes(geometry.full, tokens) // count
    buffers = [Buffer(buffer.pointer + i * part, part, buffer.owner, buffer.device) for i in range(count)]
    table = list(range(tokens // page))
    if not ordered:
        random.Random(page).shuffle(table)
    pool = layout.pool(geometry, geometry.full, page=page, blocks=tokens // page, buffers=buffers)
    return pool.view(table, 0, tokens)


def conversion(source: View, target: View) -> Run:
    return lambda: convert(source, target, allow_lossy=True)


WITHIN = {
    "vllm_lbnhc": "rows",
    "vllm_lbhnc": "rows",
    "sglang_nhd": "rows",
    "sglang_hnd": "rows",
    "vllm_cpu_vec": "transposed",
    "vllm_rocm": "transposed",
}
"""Engines' layouts, NHD and HND, and how their bytes go to the canonical one."""


def within_the_device(machine: Machine, model: Model, tokens: int) -> Iterator[Way]:
    """Pages of 16 tokens in random order, to canonical chunks and back; a plain copy reads and writes as many bytes."""
    nbytes = model.whole.block_bytes(model.whole.full, tokens)
    one, two = machine.memory(nbytes), machine.memory(nbytes)
    ours, theirs = machine.buffer(one), machine.buffer(two)

    def plain() -> None:
        two.copy_(one)

    stored = view("canonical", model.whole, tokens, theirs, CHUNK, ordered=True)
    for row, kind in WITHIN.items():
        engine = view(row, model.whole, tokens, ours, PAGE)
        yield Way(f"gather: {row} -> canonical", kind, conversion(engine, stored), plain, nbytes)
        yield Way(f"scatter: canonical -> {row}", kind, conversion(stored, engine), plain, nbytes)
    cast = view("canonical", model.small, tokens, theirs, CHUNK, ordered=True)
    share = (1 + model.small.block_bytes(model.small.full, tokens) / nbytes) / 2
    for row in ("vllm_lbnhc", "vllm_lbhnc"):
        engine = view(row, model.whole, tokens, ours, PAGE)
        name = f"bf16 -> fp8 with scales: {row} -> canonical"
        yield Way(name, "fp8", conversion(engine, cast), plain, nbytes, share)


@dataclass(frozen=True)
class Shape:
    """A transfer to pinned memory and back.

    rows: the layouts on the device and in pinned memory. pages: tokens of a block there. ordered: blocks in pinned
    memory follow each other.
    """

    name: str
    model: Model
    rows: tuple[str, str]
    pages: tuple[int, int]
    tokens: int
    ordered: bool = True

    @property
    def nbytes(self) -> int:
        return self.model.whole.block_bytes(self.model.whole.full, self.tokens)

    def ways(self, machine: Machine, chosen: Mapping[str, tuple[str, Mapping[str, int]]]) -> Iterator[Way]:
        """Both directions by each of the chosen: name, and its kind and tuning; against plain pinned copies."""
        memory, plain = machine.memory(self.nbytes), machine.plain_pinned(self.nbytes)

        def down() -> None:
            plain.copy_(memory, non_blocking=True)

        def up() -> None:
            memory.copy_(plain, non_blocking=True)

        with machine.pinned(self.nbytes) as buffer:
            device, host = (
                view(row, self.model.whole, self.tokens, where, page, ordered=ordered)
                for row, where, page, ordered in zip(
                    self.rows, (machine.buffer(memory), buffer), self.pages, (False, self.ordered), strict=True
                )
            )
            for name, (kind, tuned) in chosen.items():
                shown = f" ({name})" if name else ""
                there, back = conversion(device, host), conversion(host, device)
                yield Way(f"{self.name} -> pinned memory{shown}", kind, there, down, self.nbytes, tuned=tuned)
                yield Way(f"pinned memory -> {self.name}{shown}", kind, back, up, self.nbytes, tuned=tuned)


def of_blocks(model: Model, blocks: int) -> Shape:
    """An engine's pages in random order to canonical chunks."""
    tokens = blocks * PAGE
    chunk = CHUNK if tokens % CHUNK == 0 else tokens
    return Shape(f"{blocks} blocks", model, ("vllm_lbnhc", "canonical"), (PAGE, chunk), tokens)


def of_equal_blocks(model: Model, blocks: int) -> Shape:
    """Blocks that are alike on both sides, each one run of bytes."""
    rows = "hicache_page_unified", "hicache_page_unified"
    return Shape(f"{blocks} equal blocks", model, rows, (PAGE, PAGE), blocks * PAGE)
