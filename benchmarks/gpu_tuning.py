"""What a GPU's row of layouts/tuning.toml should say, from measurements of every way over sizes and shapes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

from benchmarks.gpu_machine import Machine
from benchmarks.gpu_ways import CHUNK, KERNELS, PAGE, PIECES, STAGED, Model, Shape, Way, within_the_device
from kvlingua.layouts import gpu

Row = dict[str, Any]
"""A measurement: grid, bytes (what is varied), way, and the ratio to the plain copy."""

WORTH = 1.02
"""How much better another cut must be to be taken: less is within the spread."""


@dataclass(frozen=True)
class Scale:
    """How much is measured. A dry run does little of everything."""

    model: Model = field(default_factory=Model)
    tokens: int = 8192  # 1 GiB of the model
    blocks: tuple[int, int] = (7, 1000)
    rounds: int = 15
    grid_rounds: int = 7
    grid_bytes: int = 64 << 20
    sizes: tuple[int, ...] = tuple((256 << 10) << 2 * i for i in range(6))  # to 256 MiB
    units: tuple[int, ...] = tuple((4 << 10) << 2 * i for i in range(6))  # of pieces and runs, to 4 MiB
    buffers: tuple[int, ...] = tuple((4 << 20) << i for i in range(5))  # for staging, to 64 MiB
    cut_bytes: tuple[int, ...] = (8192, 16384, 32768, 65536)
    waves: tuple[int, ...] = (2, 4, 8)


DRY = Scale(
    model=Model(layers=2, heads=2, dim=64),
    tokens=2 * CHUNK,
    blocks=(3, 8),
    rounds=2,
    grid_rounds=1,
    grid_bytes=128 << 10,
    sizes=(64 << 10, 128 << 10),
    units=(8 << 10, 32 << 10),
    buffers=(32 << 10, 64 << 10),
    cut_bytes=(4096, 32768),
    waves=(4,),
)


def cuts(machine: Machine, scale: Scale) -> Iterator[Row]:
    """Every way within the device, of much and of a single chunk, for other cuts of the work."""
    for tokens in (CHUNK, scale.tokens):
        ways = list(within_the_device(machine, scale.model, tokens))
        for block_bytes, waves in product(scale.cut_bytes, scale.waves):
            cut = {"block_bytes": block_bytes, "blocks": waves * gpu.device(0).multiprocessors}
            for way in ways:
                row = replace(way, tuned=cut).measure(machine, scale.grid_rounds)
                yield row | {"grid": "cut", "bytes": way.nbytes, "way": f"{block_bytes} {waves}"}


def host_ways(machine: Machine, scale: Scale) -> Iterator[Row]:
    """The ways of reaching pinned memory, over sizes, over pieces that are alike, over runs of blocks, over buffers."""
    kernels, staged, pieces = ("kernels", KERNELS), ("staged", STAGED), ("pieces", PIECES)
    four = Model(4, scale.model.heads, scale.model.dim)
    token = four.whole.block_bytes(four.whole.full, 1)
    for nbytes in scale.sizes:
        tokens = nbytes // token // PAGE * PAGE or PAGE
        chunk = CHUNK if tokens % CHUNK == 0 else tokens
        shape = Shape(f"{nbytes} bytes", four, ("vllm_lbnhc", "canonical"), (PAGE, chunk), tokens)
        yield from _measured(machine, scale, "size", nbytes, shape, (kernels, staged))
    one = Model(1, 1, scale.model.dim)
    token = one.whole.block_bytes(one.whole.full, 1)
    for nbytes in scale.units:
        page, count = nbytes // token, scale.grid_bytes // nbytes
        rows = "hicache_page_unified", "hicache_page_unified"
        shape = Shape(f"pieces of {nbytes}", one, rows, (page, page), page * count, ordered=False)
        yield from _measured(machine, scale, "piece", nbytes, shape, (kernels, staged, pieces))
        shape = Shape(f"runs of {nbytes}", one, ("vllm_lbnhc", "canonical"), (PAGE, page), page * count, ordered=False)
        yield from _measured(machine, scale, "run", nbytes, shape, (kernels, staged))
    tokens = scale.sizes[-1] // four.whole.block_bytes(four.whole.full, CHUNK) * CHUNK
    shape = Shape("by way of a buffer", four, ("vllm_lbnhc", "canonical"), (PAGE, CHUNK), tokens)
    for nbytes in scale.buffers:
        yield from _measured(
            machine, scale, "buffer", nbytes, shape, ((f"buffer of {nbytes}", STAGED | {"staging_bytes": nbytes}),)
        )


def _measured(
    machine: Machine,
    scale: Scale,
    grid: str,
    nbytes: int,
    shape: Shape,
    ways: Iterable[tuple[str, Mapping[str, int]]],
) -> Iterator[Row]:
    for way in shape.ways(machine, {name: (name, tuned) for name, tuned in ways}):
        yield way.measure(machine, scale.grid_rounds) | {"grid": grid, "bytes": nbytes, "way": way.kind}


def _mean(rows: Iterable[Row], fits: Callable[[Row], bool]) -> float:
    """The geometric mean of ratios; 0 where there are none."""
    ratios = [max(float(row["ratio"]), 1e-6) for row in rows if fits(row)]
    return math.exp(sum(map(math.log, ratios)) / len(ratios)) if ratios else 0.0


def least(rows: list[Row], grid: str, way: str) -> int | None:
    """From how many bytes on a way is the best one of a grid, both directions together; None: it is so nowhere."""
    here = [row for row in rows if row["grid"] == grid]
    found = None
    for nbytes in sorted({row["bytes"] for row in here}, reverse=True):
        means = {
            name: _mean(here, lambda row, n=nbytes, w=name: row["bytes"] == n and row["way"] == w)  # type: ignore[misc]
            for name in {row["way"] for row in here}
        }
        if means.get(way, 0.0) < max(means.values()):
            return found
        found = nbytes
    return found


def best(rows: list[Row], grid: str, usual: str) -> str:
    """The way of a grid with the best mean, if it is worth leaving the usual one."""
    here = [row for row in rows if row["grid"] == grid]
    means = {way: _mean(here, lambda row, w=way: row["way"] == w) for way in {row["way"] for row in here}}  # type: ignore[misc]
    first = max(means, key=means.__getitem__, default=usual)
    return first if means.get(first, 0.0) > WORTH * means.get(usual, 0.0) else usual


def tuning_row(rows: list[Row], usual: Mapping[str, int]) -> dict[str, int]:
    """A row of tuning.toml. Where nothing was measured it says what `usual` says; a way that is nowhere best is never
    taken (0)."""
    row = dict(usual)
    measured = {one["grid"] for one in rows}
    if "cut" in measured:
        cut = best(rows, "cut", f"{row['block_bytes']} {row['waves']}").split()
        row |= {"block_bytes": int(cut[0]), "waves": int(cut[1])}
    if "piece" in measured:
        row["piece_bytes"] = least(rows, "piece", "pieces") or 0
    if "size" in measured:
        row["stage_bytes"] = least(rows, "size", "staged") or 0
    if "buffer" in measured:
        row["staging_bytes"] = int(best(rows, "buffer", f"buffer of {row['staging_bytes']}").rpartition(" ")[2])
    if "run" in measured:
        row["run_bytes"] = least(rows, "run", "staged") or max(one["bytes"] for one in rows if one["grid"] == "run")
    return row


def toml(name: str, row: Mapping[str, int]) -> str:
    """As it stands in tuning.toml."""
    return "\n".join([f'["{name}"]', *(f"{key} = {value}" for key, value in row.items())]) + "\n"


def with_row(way: Way, row: Mapping[str, int]) -> Way:
    """A way with that row's tuning."""
    cut = {key: value for key, value in row.items() if key != "waves"}
    return replace(way, tuned=cut | {"blocks": row["waves"] * gpu.device(0).multiprocessors, **way.tuned})
