"""How fast a GPU's memory is converted, as ratios to plain copies of the same bytes in the same run.

    python benchmarks/gpu.py [--check] [--json] [--mib 1024] [--only pinned] [--tune]

bf16, 32 layers, 8 kv heads x 128, engines' pages of 16 tokens in random order. In every round the plain copy and the
conversion run once, timed by events on one stream; medians of 15 rounds. Gather and scatter count against a copy within
the device's memory, pinned memory against a plain copy to or from it; casts count the bytes that they read and write.
All of it on the default stream and again on one of its own, since the former takes no call for many copies.
`--check` exits 1 if a target is missed. `--tune` prints what rows of layouts/tuning.toml would give.
Needs a GPU: without one it says so and exits 1.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

# Run as a script from the clone: `benchmarks` is no installed package.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks.baselines import Clock, Ratio, Run, interleaved
from kvlingua.layouts import Buffer, Geometry, View, convert, format, gpu
from kvlingua.layouts.pinned import Pinned

LAYERS, HEADS, DIM, PAGE, CHUNK = 32, 8, 128, 16, 64
MODEL = Geometry.kv(LAYERS, HEADS, DIM, "bfloat16")
FP8 = Geometry.kv(LAYERS, HEADS, DIM, "float8_e4m3fn", scales="token")
ROUNDS = 15
TARGETS = {"rows": 0.90, "transposed": 0.75, "fp8": 0.80, "pinned": 0.95}
"""Of the single ways of reaching pinned memory none is promised."""
HOST_TARGET_US = 15.0
TRIED = [(block, waves) for block in (8192, 16384, 32768, 65536) for waves in (2, 4, 8)]


class DeviceClock(Clock):
    """Seconds on the device's current stream."""

    def __init__(self) -> None:
        super().__init__(1)

    def seconds(self, run: Run) -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1e3


@dataclass(frozen=True)
class Way:
    """A conversion, and the plain copy that it is measured against; work: bytes moved per byte that the copy moves."""

    name: str
    kind: str
    run: Run
    plain: Run
    work: float = 1.0


def device_memory(nbytes: int) -> torch.Tensor:
    memory: torch.Tensor = torch.zeros(nbytes, dtype=torch.uint8, device="cuda:0")
    return memory.random_(0, 127)


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


def within_the_device(tokens: int) -> Iterator[Way]:
    nbytes = MODEL.block_bytes(MODEL.full, tokens)
    one, two = device_memory(nbytes), device_memory(nbytes)
    ours, theirs = Buffer.of(one), Buffer.of(two)

    def plain() -> None:
        two.copy_(one)

    stored = view("canonical", MODEL, tokens, theirs, CHUNK, ordered=True)
    for row, kind in (
        ("vllm_lbnhc", "rows"),
        ("vllm_lbhnc", "rows"),
        ("sglang_nhd", "rows"),
        ("sglang_hnd", "rows"),
        ("vllm_cpu_vec", "transposed"),
        ("vllm_rocm", "transposed"),
    ):
        engine = view(row, MODEL, tokens, ours, PAGE)
        yield Way(f"gather: {row} -> canonical", kind, lambda engine=engine: convert(engine, stored), plain)  # type: ignore[misc]
        yield Way(f"scatter: canonical -> {row}", kind, lambda engine=engine: convert(stored, engine), plain)  # type: ignore[misc]
    small = view("canonical", FP8, tokens, theirs, CHUNK, ordered=True)
    share = (1 + FP8.block_bytes(FP8.full, tokens) / nbytes) / 2
    for row in ("vllm_lbnhc", "vllm_lbhnc"):
        engine = view(row, MODEL, tokens, ours, PAGE)
        name = f"bf16 -> fp8 with scales: {row} -> canonical"
        yield Way(name, "fp8", lambda engine=engine: convert(engine, small, allow_lossy=True), plain, share)  # type: ignore[misc]


WAYS = {"kernels": {"stage_bytes": 0, "piece_bytes": 0}, "staged": {"stage_bytes": 1}}
PIECES = {"stage_bytes": 0, "piece_bytes": 1}


def transfer(source: View, target: View, way: Mapping[str, int]) -> Run:
    """A conversion by one way of reaching pinned memory, or by the one that tuning.toml chooses."""
    usual = gpu.tuned

    def run() -> None:
        with patch.object(gpu, "tuned", lambda index: usual(index)._replace(**way)):
            convert(source, target)

    return run


def through_pinned_memory(blocks: int) -> Iterator[Way]:
    tokens = blocks * PAGE
    chunk = CHUNK if tokens % CHUNK == 0 else tokens
    nbytes = MODEL.block_bytes(MODEL.full, tokens)
    library = gpu.here().library
    assert library is not None
    memory = device_memory(nbytes)
    pinned = Pinned(library, nbytes, gpu.device(0).pci.decode())
    plain = torch.empty(nbytes, dtype=torch.uint8, pin_memory=True)
    engine = view("vllm_lbnhc", MODEL, tokens, Buffer.of(memory), PAGE)
    stored = view("canonical", MODEL, tokens, pinned.buffer, chunk, ordered=True)
    blockwise = view("hicache_page_unified", MODEL, tokens, Buffer.of(memory), PAGE)
    host = view("hicache_page_unified", MODEL, tokens, pinned.buffer, PAGE, ordered=True)

    def down() -> None:
        plain.copy_(memory, non_blocking=True)

    def up() -> None:
        memory.copy_(plain, non_blocking=True)

    for name, way in {"": {}, **WAYS}.items():
        shown = f" ({name})" if name else ""
        kind = name or "pinned"
        yield Way(f"{blocks} blocks -> pinned memory{shown}", kind, transfer(engine, stored, way), down)
        yield Way(f"pinned memory -> {blocks} blocks{shown}", kind, transfer(stored, engine, way), up)
    for name, way in {**WAYS, "pieces": PIECES}.items():
        yield Way(f"{blocks} equal blocks -> pinned memory ({name})", name, transfer(blockwise, host, way), down)
        yield Way(f"pinned memory -> {blocks} equal blocks ({name})", name, transfer(host, blockwise, way), up)
    torch.cuda.synchronize()
    pinned.close()


def measured(way: Way) -> dict[str, object]:
    clock = DeviceClock()
    times = interleaved(clock, {"plain": way.plain, "conversion": way.run}, 3)  # not counted
    times = interleaved(clock, {"plain": way.plain, "conversion": way.run}, ROUNDS)
    ratio = Ratio.of(clock, times["plain"], times["conversion"], way.work)
    target = TARGETS.get(way.kind, 0.0)
    missed = f"{ratio.ratio:.2f} instead of {target}" if ratio.ratio < target else ""
    seconds = statistics.median(times["plain"])
    return {"name": way.name, "kind": way.kind, **vars(ratio), "plain_ms": round(seconds * 1e3, 4), "missed": missed}


def host_time() -> dict[str, object]:
    """What a chunk of 64 tokens costs the calling thread, in microseconds."""
    nbytes = MODEL.block_bytes(MODEL.full, CHUNK)
    engine = view("vllm_lbnhc", MODEL, CHUNK, Buffer.of(device_memory(nbytes)), PAGE)
    stored = view("canonical", MODEL, CHUNK, Buffer.of(device_memory(nbytes)), CHUNK)
    times = []
    for _ in range(500):
        torch.cuda.synchronize()  # so that no call waits for room in the device's queue
        begin = time.perf_counter()
        convert(engine, stored)
        times.append((time.perf_counter() - begin) * 1e6)
    median = statistics.median(times)
    missed = f"{median:.0f} us instead of {HOST_TARGET_US:.0f}" if median > HOST_TARGET_US else ""
    row = {"name": "host time of a chunk, us", "kind": "host", "median": round(median, 1), "missed": missed}
    return row | {"min": round(min(times), 1), "max": round(max(times), 1)}


def tuned(tokens: int) -> Iterator[Mapping[str, object]]:
    """The ratio of every way within the device for other cuts of the work."""
    for block_bytes, waves in TRIED:
        cut = gpu.tuned(0)._replace(block_bytes=block_bytes, blocks=waves * gpu.device(0).multiprocessors)
        with patch.object(gpu, "tuned", lambda index, cut=cut: cut):
            for way in within_the_device(tokens):
                row = measured(way)
                yield {"name": row["name"], "block_bytes": block_bytes, "waves": waves, "ratio": row["ratio"]}


def rows(mib: int, only: str) -> Iterator[Mapping[str, object]]:
    for name, stream in (("default", torch.cuda.default_stream()), ("own", torch.cuda.Stream())):
        with torch.cuda.stream(stream):
            for row in rows_of_a_stream(mib, only):
                yield {**row, "stream": name}


def rows_of_a_stream(mib: int, only: str) -> Iterator[Mapping[str, object]]:
    tokens = (mib << 20) // MODEL.block_bytes(MODEL.full, CHUNK) * CHUNK
    for ways in (within_the_device(tokens), through_pinned_memory(7), through_pinned_memory(1000)):
        for way in ways:
            if only in way.name or only == way.kind:
                yield measured(way)
    if only in "host time of a chunk":
        yield host_time()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object per row")
    parser.add_argument("--check", action="store_true", help="exit 1 if a target is missed")
    parser.add_argument("--mib", type=int, default=1024, help="of bf16 within the device (default: %(default)s)")
    parser.add_argument("--only", default="", help="rows whose name contains this, or whose kind it is")
    parser.add_argument("--tune", action="store_true", help="try cuts of the work instead")
    options = parser.parse_args()
    if not torch.cuda.is_available() or not gpu.available():
        print(f"gpu.py: nothing was measured: torch has no GPU here, or {gpu.describe()}", file=sys.stderr)
        return 1
    print(f"{torch.cuda.get_device_name(0)}, {gpu.describe()}", file=sys.stderr)
    if options.tune:
        for row in tuned((options.mib << 20) // MODEL.block_bytes(MODEL.full, CHUNK) * CHUNK):
            print(json.dumps(row), flush=True)
        return 0
    missed = False
    for row in rows(options.mib, options.only):
        missed |= bool(row["missed"])
        ratio = row.get("ratio", row["median"])
        shown = f"{row['name']:52} {row['stream']:8}{ratio:>8} ({row['min']} - {row['max']})  {row['missed']}"
        print(json.dumps(row) if options.json else shown, flush=True)
    return 1 if missed and options.check else 0


if __name__ == "__main__":
    sys.exit(main())
