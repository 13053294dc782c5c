"""What a conversion costs beside its copying: one chunk through the public call, and planning a long transfer."""

from __future__ import annotations

import random
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from benchmarks.baselines import Clock, libc_memcpy
from benchmarks.transfers import BF16, CHUNK, DIM, HEADS, Memory
from kvlingua.layouts import Geometry, Pool, convert, format, native
from kvlingua.layouts.plan import make_plan

LAYERS = 32
TOKEN_BYTES = LAYERS * HEADS * DIM * 2 * 2
CHUNKS = 16  # 128 MiB: by the time a chunk comes again, it is in no cache
CASES = ("vllm_lbnhc", 16), ("vllm_lbhnc", 128), ("sglang_nhd", 1)


@dataclass(frozen=True)
class Latency:
    """Seconds of something in each round; `floor` is what is taken off. `kind` says which target it has."""

    name: str
    kind: str
    times: list[float]
    floor: list[float]

    def row(self) -> dict[str, object]:
        """Microseconds beyond the median of the floor, and the median as a ratio: the floor's time to the whole."""
        floor, median = statistics.median(self.floor), statistics.median(self.times)
        over = {
            name: round(1e6 * (seconds - floor), 1)
            for name, seconds in (("median", median), ("min", min(self.times)), ("max", max(self.times)))
        }
        return {"name": self.name, "kind": self.kind, "ratio": round(floor / median, 3), **over, "unit": "us"}


def latencies(rounds: int) -> Iterator[Latency]:
    """64 tokens of 32 layers (8 MiB): out of the cache and in it, both directions; plans of 4,096 tokens."""
    pages, rows = (Memory(CHUNKS * CHUNK * TOKEN_BYTES) for _ in range(2))
    for layout, page in CASES:
        for cached in (False, True):
            for into_pages in (False, True):
                yield _chunk(pages, rows, layout, page, rounds, into_pages=into_pages, cached=cached)
    for layout, page in CASES:
        yield _plan(layout, page, rounds)


def _pool(memory: Memory, layout: str, page: int, tokens: int) -> Pool:
    return memory.view(format(layout), Geometry.kv(LAYERS, HEADS, DIM, BF16), tokens, page).pool


def _chunk(
    pages: Memory, rows: Memory, layout: str, page: int, rounds: int, *, into_pages: bool, cached: bool
) -> Latency:
    """`convert` of one chunk, views made anew, and memcpy of as many bytes: of another chunk, or of the same."""
    memcpy, tokens, size = libc_memcpy(), CHUNKS * CHUNK, CHUNK * TOKEN_BYTES
    paged, chunked = _pool(pages, layout, page, tokens), _pool(rows, "canonical", CHUNK, tokens)
    table = list(range(tokens // page))
    rng = random.Random(page)
    rng.shuffle(table)
    source, target = (rows, pages) if into_pages else (pages, rows)

    def one(chunk: int) -> None:
        inside = paged.view(table, chunk * CHUNK, (chunk + 1) * CHUNK)
        whole = chunked.view([chunk], 0, CHUNK)
        convert(whole, inside) if into_pages else convert(inside, whole)

    def plain(chunk: int) -> None:
        memcpy(target.buffer.pointer + chunk * size, source.buffer.pointer + chunk * size, size)

    clock, times, floor = Clock(1), [], []
    for i in range(rounds * 4):
        if cached:
            one(0)
            times.append(clock.seconds(partial(one, 0)))
            plain(0)
            floor.append(clock.seconds(partial(plain, 0)))
        else:  # in an order that is drawn anew: what runs behind a plain copy finds memory as that has left it
            pair = [(times, partial(one, i % CHUNKS)), (floor, partial(plain, (i + CHUNKS // 2) % CHUNKS))]
            for seconds, run in rng.sample(pair, 2):
                seconds.append(clock.seconds(run))
    ends = f"canonical -> {layout} {page}" if into_pages else f"{layout} {page} -> canonical"
    kind = "chunk" if page > 1 else "chunk of slots"
    return Latency(f"chunk of 64, {'' if cached else 'not '}in cache: {ends}", kind, times, floor)


def _plan(layout: str, page: int, rounds: int) -> Latency:
    """All that is done in Python for 4,096 tokens, with block numbers as an engine gives them: a new list each time."""
    tokens = 4096
    pages, rows = (Memory(tokens * TOKEN_BYTES, touch=False) for _ in range(2))
    paged, chunked = _pool(pages, layout, page, tokens), _pool(rows, "canonical", CHUNK, tokens)

    def plan(blocks: list[int], chunks: list[int]) -> None:
        native.call(make_plan(paged.view(blocks, 0, tokens), chunked.view(chunks, 0, tokens)))

    clock, rng, times = Clock(1), random.Random(page), []
    for _ in range(rounds * 4):
        blocks, chunks = list(range(tokens // page)), list(range(tokens // CHUNK))
        rng.shuffle(blocks)
        times.append(clock.seconds(partial(plan, blocks, chunks)))
    return Latency(f"plan of 4,096 tokens, 32 layers: {layout} {page} -> canonical", "plan", times, [0.0])
