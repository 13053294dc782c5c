"""128 MiB of KV in two memories, and every transfer between them whose speed is promised."""

from __future__ import annotations

import mmap
import random
from array import array
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch

from benchmarks.baselines import Run
from benchmarks.torch_ways import TorchWays
from kvlingua.layouts import Buffer, Geometry, Layout, View, convert, format, native
from kvlingua.layouts.plan import make_plan

LAYERS, HEADS, DIM, CHUNK = 8, 8, 128, 64
BF16, FP8 = "bfloat16", "float8_e4m3fn"
PAGED = "sglang_nhd", "sglang_hnd", "vllm_lbnhc", "vllm_lbhnc"


@dataclass(frozen=True)
class Transfer:
    """One way of moving all tokens. `kind` says which target it has."""

    name: str
    kind: str
    run: Run
    right: Callable[[], bool]  # after `clear` and `run`: whether every byte is where it belongs
    peers: Mapping[str, Run] = field(default_factory=dict)
    prepare: Run | None = None  # what has to be run once before it


class Memory:
    """Page-aligned memory, touched unless it is only planned with."""

    def __init__(self, nbytes: int, *, touch: bool = True) -> None:
        memory = mmap.mmap(-1, nbytes)
        self.buffer = Buffer.of(memory)
        self.numbers = torch.frombuffer(memory, dtype=torch.int16)
        if touch:
            self.numbers.fill_(1)

    def view(
        self,
        layout: Layout,
        geometry: Geometry,
        tokens: int,
        page: int,
        *,
        ordered: bool = False,
        times: int = 1,
        scales: Mapping[str, list[Buffer]] | None = None,
    ) -> View:
        """`tokens` tokens, in blocks of random order unless `ordered`, of a pool that fills this memory.

        times: how often they would fit into the pool.
        """
        if "block" not in layout.axes("k"):
            page = tokens
        blocks = times * tokens // page
        count = 1
        for axis in layout.separate:
            count *= geometry.layers if axis == "layer" else 2
        part = self.buffer.nbytes // count
        buffers = [Buffer(self.buffer.pointer + i * part, part, self.buffer) for i in range(count)]
        table = list(range(blocks)) if ordered else random.Random(page).sample(range(blocks), tokens // page)
        pool = layout.pool(geometry, geometry.full, page=page, blocks=blocks, buffers=buffers, scales=scales or {})
        return pool.view(array("q", table), 0, tokens)


class Transfers:
    """All transfers of `tokens` tokens, 8 layers, 8 kv heads x 128, bf16, between a source and a target."""

    def __init__(self, tokens: int, threads: int) -> None:
        self.tokens, self.threads = tokens, threads
        self.geometry = Geometry.kv(LAYERS, HEADS, DIM, BF16)
        self.nbytes = self.geometry.block_bytes(self.geometry.full, tokens)
        self.source, self.target, self.scratch = (Memory(self.nbytes) for _ in range(3))
        self.wide = Memory(2 * self.nbytes)
        numbers = torch.randn(self.nbytes // 2, generator=torch.Generator().manual_seed(1))
        self.source.numbers.view(torch.bfloat16).copy_(numbers)

    def __iter__(self) -> Iterator[Transfer]:
        """In the table's order. Pages are in random order, canonical chunks in their own."""
        for page in (16, 32, 64, 128, 256):
            for name in PAGED:
                yield from self._both("pages", format(name), page)
        yield from self._both("pages", format("hf"), self.tokens)
        for name in PAGED:
            yield from self._half_a_pool(format(name), 16)
        for name in ("sglang_nhd", "vllm_lbnhc"):
            yield from self._both("slots", format(name), 1)
        for name, page in (("vllm_cpu_vec", 32), ("vllm_cpu_vec", 128), ("vllm_rocm", 16)):
            yield from self._both("tiles", format(name), page)
        yield from self._both("tiles", format("llamacpp_v_trans"), self.tokens)
        yield from self._fp8("best")
        if "avx512" in native.describe():
            yield from self._fp8("avx2")

    def _both(self, kind: str, pages: Layout, page: int) -> Iterator[Transfer]:
        """To canonical chunks and back."""
        name = f"{pages.name} {page}" if "block" in pages.axes("k") else pages.name
        for into_pages in (False, True):
            page_memory, row_memory = (self.target, self.source) if into_pages else (self.source, self.target)
            paged = page_memory.view(pages, self.geometry, self.tokens, page)
            rows = row_memory.view(format("canonical"), self.geometry, self.tokens, CHUNK, ordered=True)
            ways = TorchWays(paged, page_memory.numbers, rows, row_memory.numbers).ways(into_pages=into_pages)
            if into_pages:
                yield Transfer(f"canonical -> {name}", kind, self._run(rows, paged), self._copied, ways)
            else:
                yield Transfer(f"{name} -> canonical", kind, self._run(paged, rows), self._copied, ways)

    def _half_a_pool(self, pages: Layout, page: int) -> Iterator[Transfer]:
        """From canonical chunks into a pool that is twice as large, and back: every second block, on average."""
        canonical, name = format("canonical"), f"half of {pages.name} {page}"
        paged = self.wide.view(pages, self.geometry, self.tokens, page, times=2)
        rows = self.source.view(canonical, self.geometry, self.tokens, CHUNK, ordered=True)
        again = self.target.view(canonical, self.geometry, self.tokens, CHUNK, ordered=True)
        into = TorchWays(paged, self.wide.numbers, rows, self.source.numbers).ways(into_pages=True)
        back = TorchWays(paged, self.wide.numbers, again, self.target.numbers).ways(into_pages=False)
        scatter, gather = self._run(rows, paged), self._run(paged, again)

        def scattered() -> bool:
            return bool(self.source.numbers.sum() == self.wide.numbers.sum())

        yield Transfer(f"canonical -> {name}", "half", scatter, scattered, into)
        yield Transfer(f"{name} -> canonical", "half", gather, self._copied, back, prepare=scatter)

    def clear(self) -> None:
        """Zeros in all that a transfer may write."""
        for memory in (self.target, self.scratch, self.wide):
            memory.numbers.zero_()

    def _copied(self) -> bool:
        return bool(self.source.numbers.sum() == self.target.numbers.sum())

    def _restored(self) -> bool:
        """Whether the scratch memory is the source but for the rounding to fp8."""
        ends = self.scratch.numbers.view(torch.bfloat16), self.source.numbers.view(torch.bfloat16)
        return all(
            torch.allclose(a, b, rtol=0.07, atol=3e-4) for a, b in zip(*(x.chunk(16) for x in ends), strict=True)
        )

    def _run(self, source: View, target: View, kernels: native.Kernels = "best") -> Run:
        if kernels == "best":
            return lambda: convert(source, target, threads=self.threads, allow_lossy=True)
        plan = make_plan(source, target, allow_lossy=True)
        return lambda: native.run(plan, self.threads, kernels=kernels)

    def _fp8(self, kernels: native.Kernels) -> Iterator[Transfer]:
        """With one fixed scale a layer and plane, as an engine has it; with one computed per token and head."""
        kind = "fp8" if kernels == "best" and "avx512" in native.describe() else "fp8, no AVX-512"
        pages, rows = format("vllm_lbnhc"), format("canonical")
        one = {f"{name}_scale": [Buffer.of(array("f", [0.25])) for _ in range(LAYERS)] for name in "kv"}
        fixed = Geometry.kv(LAYERS, HEADS, DIM, FP8, scales="tensor")
        computed = Geometry.kv(LAYERS, HEADS, DIM, FP8, scales="token")

        stored = self.source.view(rows, self.geometry, self.tokens, CHUNK, ordered=True)
        engine = self.target.view(pages, fixed, self.tokens, 16, scales=one)
        again = self.scratch.view(rows, self.geometry, self.tokens, CHUNK, ordered=True)
        ends = "canonical bf16", "vllm_lbnhc 16 fp8 (fixed)"
        yield from self._there_and_back(ends, kind, stored, engine, again, kernels)

        engine = self.source.view(pages, self.geometry, self.tokens, 16)
        stored = self.target.view(rows, computed, self.tokens, CHUNK, ordered=True)
        again = self.scratch.view(pages, self.geometry, self.tokens, 16)
        ends = "vllm_lbnhc 16 bf16", "canonical fp8 (computed)"
        yield from self._there_and_back(ends, kind, engine, stored, again, kernels)

    def _there_and_back(
        self, ends: tuple[str, str], kind: str, source: View, target: View, again: View, kernels: native.Kernels
    ) -> Iterator[Transfer]:
        """The way back has no target."""
        note = "" if kernels == "best" else f", {kernels}"
        there, back = self._run(source, target, kernels), self._run(target, again, kernels)

        def right() -> bool:
            back()
            return self._restored()

        yield Transfer(f"{ends[0]} -> {ends[1]}{note}", kind, there, right)
        yield Transfer(f"{ends[1]} -> {ends[0]}{note}", "", back, self._restored, prepare=there)
