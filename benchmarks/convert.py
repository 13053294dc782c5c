"""How fast layouts are converted, as a ratio to libc's memcpy of the same bytes in the same run.

    python benchmarks/convert.py [--json] [--check] [--quick]

128 MiB in bf16: 4,096 tokens, 8 layers, 8 kv heads x 128, K and V; blocks in random order, one thread. Both memories
are touched before; every measurement is preceded by a memcpy between the very same two; medians of 15. vLLM's CPU
layout has 32 tokens a block, the least vLLM allows, and 16 beside; the others 16. The canonical side is chunks of 64
tokens. Beside the conversions the ways a program would go with torch alone, for pages <-> HF. Times are the thread's
CPU time, which on an idle machine is the wall clock's and on a busy one leaves out what other programs took; the
memory's bandwidth they still share.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import mmap
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from kvlingua.layouts import Buffer, Geometry, Layout, Plane, View, convert, format, native

HEADS, DIM, CHUNK = 8, 128, 64
TARGETS = {"gather": 0.9, "scatter": 0.6, "transpose": 0.4}
VEC_K = Layout("vec K alone", "layer | block head (k: dim token)")
ROWS_K = Layout("canonical K alone", "| block (k: head layer token dim)")


@dataclass(frozen=True)
class Case:
    """One row: a way of copying and the target of the issue it counts for, if any."""

    name: str
    kind: str | None
    run: Callable[[], None]


class Bench:
    """Two touched memories of the same size, and everything that is measured between them."""

    def __init__(self, layers: int, tokens: int) -> None:
        self.geometry = Geometry.kv(layers, HEADS, DIM, "bfloat16")
        self.k_only = Geometry(2 * layers, HEADS, (Plane("k", DIM),), "bfloat16")
        self.tokens = tokens
        self.nbytes = tokens * self.geometry.token_bytes(self.geometry.full)
        self.source, self.target = mmap.mmap(-1, self.nbytes), mmap.mmap(-1, self.nbytes)
        self.source_numbers = torch.frombuffer(self.source, dtype=torch.int16)
        self.target_numbers = torch.frombuffer(self.target, dtype=torch.int16)
        self.source_numbers.random_(-(2**15), 2**15 - 1)
        self.target_numbers.fill_(1)

    def view(self, layout: Layout, geometry: Geometry, memory: mmap.mmap, page: int) -> View:
        """All tokens, in blocks of random order, of a pool that fills `memory`."""
        if "block" not in layout.axes("k"):
            page = self.tokens
        blocks = self.tokens // page
        whole = Buffer.of(memory)
        count = 1
        for axis in layout.separate:
            count *= geometry.layers if axis == "layer" else len(geometry.planes)
        part = self.nbytes // count
        buffers = [Buffer(whole.pointer + i * part, part, whole) for i in range(count)]
        table = list(range(blocks))
        random.Random(page).shuffle(table)
        pool = layout.pool(geometry, geometry.full, page=page, blocks=blocks, buffers=buffers)
        return pool.view(table, 0, self.tokens)

    def conversion(self, kind: str, pages: Layout, rows: Layout, page: int, *, into_pages: bool) -> Case:
        """Pages of `page` tokens to or from rows."""
        geometry = self.k_only if len(pages.groups) == 1 else self.geometry
        ends = [(pages, page), (rows, CHUNK)]
        (a, a_page), (b, b_page) = reversed(ends) if into_pages else ends
        source, target = self.view(a, geometry, self.source, a_page), self.view(b, geometry, self.target, b_page)
        note = f", blocks of {page}" if page != 16 else ""
        return Case(f"{a.name} -> {b.name}{note}", kind, lambda: convert(source, target))

    def conversions(self) -> Iterator[Case]:
        """The pairs the issue sets targets for."""
        for into_pages, kind in ((False, "gather"), (True, "scatter")):
            for pages in ("vllm_lbnhc", "vllm_lbhnc", "sglang_nhd", "sglang_hnd"):
                for rows in ("canonical", "hf"):
                    yield self.conversion(kind, format(pages), format(rows), 16, into_pages=into_pages)
        for page in (32, 16):
            for rows in ("canonical", "hf"):
                for into_pages in (False, True):
                    vec = format("vllm_cpu_vec")
                    yield self.conversion("transpose", vec, format(rows), page, into_pages=into_pages)
            for into_pages in (False, True):
                yield self.conversion("transpose", VEC_K, ROWS_K, page, into_pages=into_pages)

    def torch_ways(self) -> Iterator[Case]:
        """Slots [page x block] of NHD and HND pools to and from HF's [head, token, dim], all layers and planes."""
        copies = 2 * self.geometry.layers
        per = self.tokens * HEADS * DIM
        blocks = self.tokens // 16
        order = list(range(blocks))
        random.Random(16).shuffle(order)
        table = torch.tensor(order)
        slots = (table[:, None] * 16 + torch.arange(16)).flatten()
        flat = [self.source_numbers[i * per : (i + 1) * per] for i in range(copies)]
        into = [self.target_numbers[i * per : (i + 1) * per] for i in range(copies)]
        scratch = torch.empty(per, dtype=torch.int16)

        def naive_gather() -> None:
            for a, b in zip(flat, into, strict=True):
                b.view(HEADS, self.tokens, DIM).copy_(a.view(-1, HEADS, DIM)[slots].transpose(0, 1).contiguous())

        def select_gather() -> None:
            rows = scratch.view(self.tokens, HEADS, DIM)
            for a, b in zip(flat, into, strict=True):
                torch.index_select(a.view(-1, HEADS, DIM), 0, slots, out=rows)
                b.view(HEADS, self.tokens, DIM).copy_(rows.transpose(0, 1))

        def naive_scatter() -> None:
            for a, b in zip(flat, into, strict=True):
                b.view(-1, HEADS, DIM)[slots] = a.view(HEADS, self.tokens, DIM).transpose(0, 1).contiguous()

        def copy_scatter() -> None:
            for a, b in zip(flat, into, strict=True):
                b.view(-1, HEADS, DIM).index_copy_(0, slots, a.view(HEADS, self.tokens, DIM).transpose(0, 1))

        def select_pages() -> None:
            pages = scratch.view(blocks, HEADS, 16, DIM)
            for a, b in zip(flat, into, strict=True):
                torch.index_select(a.view(blocks, HEADS, 16, DIM), 0, table, out=pages)
                b.view(HEADS, blocks, 16, DIM).copy_(pages.transpose(0, 1))

        def copy_pages() -> None:
            for a, b in zip(flat, into, strict=True):
                rows = a.view(HEADS, blocks, 16, DIM).transpose(0, 1)
                b.view(blocks, HEADS, 16, DIM).index_copy_(0, table, rows)

        yield Case("torch naive: sglang_nhd -> hf", None, naive_gather)
        yield Case("torch index_select: sglang_nhd -> hf", None, select_gather)
        yield Case("torch index_select: sglang_hnd -> hf", None, select_pages)
        yield Case("torch naive: hf -> sglang_nhd", None, naive_scatter)
        yield Case("torch index_copy_: hf -> sglang_nhd", None, copy_scatter)
        yield Case("torch index_copy_: hf -> sglang_hnd", None, copy_pages)

    def measure(self, case: Case, rounds: int) -> dict[str, object]:
        """The row of a case: memcpy's time over its own. Raises RuntimeError if bytes got lost."""
        memcpy = ctypes.CDLL(None).memcpy
        memcpy.argtypes = ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t
        memcpy.restype = ctypes.c_void_p
        ends = Buffer.of(self.target).pointer, Buffer.of(self.source).pointer, self.nbytes
        self.target_numbers.zero_()
        case.run()
        if self.source_numbers.sum() != self.target_numbers.sum():
            raise RuntimeError(f"{case.name}: not every byte was copied")
        floor, times = [], []
        for _ in range(rounds):
            floor.append(_seconds(lambda: memcpy(*ends)))
            times.append(_seconds(case.run))
        ratios = [a / b for a, b in zip(floor, times, strict=True)]
        return {
            "name": case.name,
            "kind": case.kind,
            "ratio": round(statistics.median(floor) / statistics.median(times), 3),
            "median": round(statistics.median(ratios), 3),
            "min": round(min(ratios), 3),
            "max": round(max(ratios), 3),
        }


def _seconds(run: Callable[[], object]) -> float:
    begin = time.thread_time()
    run()
    return time.thread_time() - begin


def main() -> int:
    """Measure, print, and with --check exit 1 if a target of the issue is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object per row")
    parser.add_argument("--check", action="store_true", help="exit 1 if a target is missed")
    parser.add_argument("--quick", action="store_true", help="32 MiB and 5 rounds: a smoke test, no result")
    parser.add_argument("--only", default="", help="rows whose name or kind contains this")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    bench = Bench(layers=8, tokens=1024 if arguments.quick else 4096)
    if not arguments.json:
        print(f"{bench.nbytes >> 20} MiB, {native.describe()}, one thread; memcpy = 1\n")
        print(f"{'':48} {'ratio':>6} {'min':>6} {'max':>6}")
    worst: dict[str, float] = {}
    for case in [*bench.conversions(), *bench.torch_ways()]:
        if arguments.only not in case.name and arguments.only != case.kind:
            continue
        row = bench.measure(case, 5 if arguments.quick else 15)
        if case.kind:
            worst[case.kind] = min(worst.get(case.kind, 9.9), float(str(row["ratio"])))
        if arguments.json:
            print(json.dumps(row), flush=True)
        else:
            print(f"{case.name:48} {row['ratio']:6.2f} {row['min']:6.2f} {row['max']:6.2f}", flush=True)
    missed = False
    for kind, ratio in worst.items():
        verdict = "met" if ratio >= TARGETS[kind] else "MISSED"
        missed |= verdict == "MISSED"
        print(f"{kind}: at least {TARGETS[kind]}: {verdict}, worst {ratio:.2f}", file=sys.stderr)
    return 1 if missed and arguments.check else 0


if __name__ == "__main__":
    sys.exit(main())
