"""LMCache's own CPU copies of the transfers that it knows, as ratios to memcpy measured in this very process.

Run by convert.py, with the Python of an environment that has LMCache 0.5.6 and torch (docs/benchmarks.md says how to
make one): LMCache wants older versions of packages than a developer's environment here has.

LMCache keeps chunks of 256 tokens as [plane, layer, token, head * dim], or as [layer, token, head * (K dims, V dims)]
where the engine packs K and V. So it transposes heads and tokens for HND, and copies whole rows for NHD.
"""

from __future__ import annotations

import argparse
import json
import mmap
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks.baselines import Clock, Ratio, Run, interleaved, libc_memcpy

LAYERS, HEADS, DIM, CHUNK = 8, 8, 128, 256


class Copies:
    """One memory of paged KV and one of LMCache's chunks, both touched; their copies both ways."""

    def __init__(self, tokens: int, ops: Any, native: Any) -> None:
        self.tokens, self.ops, self.native = tokens, ops, native
        self.nbytes = 2 * LAYERS * HEADS * DIM * 2 * tokens
        self.pages, self.chunks = (torch.frombuffer(mmap.mmap(-1, self.nbytes), dtype=torch.int16) for _ in range(2))
        self.pages.random_(-(2**15), 2**15 - 1)
        self.chunks.fill_(1)

    def ways(self) -> Iterator[tuple[str, bool, Run]]:
        """Name of the engine's layout and page, whether into pages, and the copy."""
        formats, direction = self.native.EngineKVFormat, self.native.TransferDirection
        pool = self.pages.view(torch.bfloat16)
        for page in (16, 32, 64, 128, 256):
            blocks = self.tokens // page
            flat = list(pool.view(2 * LAYERS, blocks * page, HEADS, DIM))
            packed = pool.view(LAYERS, blocks, -1)
            for name, kv_format, pages in (
                ("sglang_nhd", formats.TWO_X_NL_X_NBBS_NH_HS, [flat[:LAYERS], flat[LAYERS:]]),
                ("vllm_lbnhc", formats.NL_X_NB_BS_NH_TWO_HS, list(packed.view(LAYERS, blocks, page, HEADS, -1))),
                ("vllm_lbhnc", formats.NL_X_NB_NH_BS_TWO_HS, list(packed.view(LAYERS, blocks, HEADS, page, -1))),
            ):
                order = list(range(blocks))
                random.Random(page).shuffle(order)
                for into_pages in (False, True):
                    way = direction.H2D if into_pages else direction.D2H
                    yield f"{name} {page}", into_pages, self._blocks(kv_format, pages, order, page, way)
        flat = list(pool.view(2 * LAYERS, self.tokens, HEADS * DIM))
        slots = torch.randperm(self.tokens)
        for into_pages in (False, True):
            way = direction.H2D if into_pages else direction.D2H
            yield "sglang_nhd 1", into_pages, self._slots(formats.TWO_X_NL_X_NBBS_NH_HS, flat, slots, way)

    def _blocks(self, kv_format: Any, pages: list[Any], order: list[int], page: int, direction: Any) -> Run:
        """What LMCache's multiprocess mode calls for an engine on CPUs."""
        shape = self.native.PageBufferShapeDesc()
        packed = isinstance(pages[0], torch.Tensor)
        shape.kv_size, shape.nl, shape.nb, shape.bs = (1 if packed else 2), LAYERS, self.tokens // page, page
        shape.nh, shape.hs, shape.element_size = HEADS, DIM * (2 if packed else 1), 2
        shape.dtype = torch.bfloat16
        objects = self.chunks.view(torch.bfloat16).view(
            self.tokens // CHUNK, *((LAYERS,) if packed else (2, LAYERS)), CHUNK, -1
        )
        chunks = list(objects)
        return lambda: self.ops.multi_layer_block_kv_transfer(
            pages, chunks, order, "cpu", direction, shape, CHUNK, kv_format, 0
        )

    def _slots(self, kv_format: Any, flat: list[Any], slots: torch.Tensor, direction: Any) -> Run:
        """What its in-process mode calls for SGLang, a slot for each token: here one object of all tokens."""
        whole = self.chunks.view(torch.bfloat16).view(2, LAYERS, self.tokens, HEADS * DIM)
        return lambda: self.ops.multi_layer_kv_transfer_unilateral(
            whole, flat, slots, torch.device("cpu"), self.tokens, direction, kv_format
        )

    def measure(self, run: Run, rounds: int, clock: Clock, *, into_pages: bool) -> Ratio:
        source, target = (self.chunks, self.pages) if into_pages else (self.pages, self.chunks)
        target.zero_()
        run()
        if source.sum() != target.sum():
            raise RuntimeError("LMCache did not copy every byte")
        memcpy = clock.spread(libc_memcpy(), target.data_ptr(), source.data_ptr(), self.nbytes)
        times = interleaved(clock, {"memcpy": memcpy, "way": run}, rounds)
        return Ratio.of(clock, times["memcpy"], times["way"])


def main() -> int:
    """A JSON object per row: name, ratio, median, min, max. Exits 3 if LMCache is not installed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    try:
        import lmcache  # type: ignore[import-not-found]
        from lmcache import lmcache_native
    except ImportError as error:
        print(f"LMCache doesn't import: {error}", file=sys.stderr)
        return 3
    copies, clock = Copies(options.tokens, lmcache.device_ops, lmcache_native), Clock(options.threads)
    for name, into_pages, run in copies.ways():
        with torch.inference_mode():
            ratio = copies.measure(run, options.rounds, clock, into_pages=into_pages)
        full = f"canonical -> {name}" if into_pages else f"{name} -> canonical"
        print(json.dumps({"name": full, **vars(ratio), "version": lmcache.__version__}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
