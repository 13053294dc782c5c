"""What loading and storing objects in files costs, as multiples of a memcpy of the same bytes in the same run.

    python benchmarks/objects.py [--rounds 15] [--json] [--check]

4,096 tokens x 8 layers x 8 kv heads x 128, bf16: 128 MiB in 64 objects of 64 tokens, their files in the page cache, and
vLLM's pages on CPUs (K transposed) in random order. One thread, CPU time of the whole process, in every round each row
once. Beside the whole loads stand the parts of one, each measured by itself: files opened and read into memory that
stays in the cache, checksums of it, its conversion into the pages. `one by one` is the way without the native call for
batches: all is read and verified in memory before it is converted. Storing has two halves: what the engine waits for,
and what the write thread does later (files of a temporary folder, on whatever disk that is on). `--check` exits 1
unless a load takes at most 2 memcpy.
"""

import argparse
import ctypes
import json
import mmap
import os
import random
import shutil
import statistics
import sys
import tempfile
import time
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

# Run as a script from the clone: `benchmarks` is no installed package.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks.baselines import libc_memcpy
from kvlingua.common import bulk, objects_abi
from kvlingua.common.cache import KVCache
from kvlingua.common.config import Config
from kvlingua.common.container import Container
from kvlingua.common.identity.namespace import Namespace
from kvlingua.common.slots import passing
from kvlingua.layouts import native
from kvlingua.layouts.formats import format
from kvlingua.layouts.geometry import Extent
from kvlingua.layouts.memory import Buffer
from kvlingua.layouts.plan import make_plan
from kvlingua.layouts.view import View

TOKENS, LAYERS, HEADS, DIM, PAGE = 4096, 8, 8, 128, 128
NBYTES = TOKENS * LAYERS * HEADS * DIM * 2 * 2
AT_MOST = 2.0
NAMESPACE = Namespace(
    fingerprint="benchmark",
    model_config={},
    overrides={},
    rope={"rotary_dim": DIM},
    rope_order="half",
    compute_dtype="bfloat16",
    weight_format="bfloat16",
    quantization=None,
    kv_dtype="bfloat16",
    scales_policy="none",
    layers=LAYERS,
    kv_heads=HEADS,
    planes={"k": DIM, "v": DIM},
    chunk_tokens=64,
    heads_per_shard=1,
    layers_per_shard=LAYERS,
)


def pages(extent: Extent) -> View:
    """Touched memory for all tokens of some heads, as vLLM's CPU backend keeps it, the blocks in random order."""
    blocks, row = TOKENS // PAGE, PAGE * 2 * DIM
    memory = [torch.randn(blocks * extent.heads * row).to(torch.bfloat16) for _ in range(extent.layers)]
    pool = format("vllm_cpu_vec").pool(
        NAMESPACE.geometry,
        extent,
        page=PAGE,
        blocks=blocks,
        buffers=[Buffer.of(each) for each in memory],
        strides={"block": extent.heads * row * 2, "head": row * 2},
    )
    order = list(range(blocks))
    random.Random(1).shuffle(order)
    return pool.view(array("q", order), 0, TOKENS)


@contextmanager
def one_by_one() -> Iterator[None]:
    """Without the native call for batches."""
    real = bulk.available
    bulk.available = lambda: False
    try:
        yield
    finally:
        bulk.available = real


class Rows:
    """What is measured, by name: each is a function without arguments."""

    def __init__(self, cache: KVCache, root: Path) -> None:
        self._cache, self._root = cache, root
        full = NAMESPACE.geometry.full
        self._container = Container(NAMESPACE, full)
        self._source, self._target = pages(full), pages(full)
        self._eighth = pages(Extent(3, 4, 0, LAYERS))
        self._prompts = 0
        self._slot = memoryview(mmap.mmap(-1, self._container.object_bytes))
        self._copies = [torch.zeros(NBYTES, dtype=torch.uint8) for _ in range(2)]
        self._memcpy = libc_memcpy()
        self.store()
        cache.flush(60)
        self._hit = cache.lookup(NAMESPACE, range(TOKENS))
        assert self._hit.tokens == TOKENS
        self._files = sorted(root.glob("*/*.safetensors"))
        os.sync()

    def memcpy(self) -> None:
        self._memcpy(self._copies[0].data_ptr(), self._copies[1].data_ptr(), NBYTES)

    def load(self) -> None:
        self._cache.load(self._hit, self._target, 0, TOKENS)

    def load_one_by_one(self) -> None:
        with one_by_one():
            self.load()

    def load_an_eighth(self) -> None:
        self._cache.load(self._hit, self._eighth, 0, TOKENS)

    def look_up(self) -> None:
        self._cache.lookup(NAMESPACE, range(TOKENS))

    def read(self) -> None:
        for path in self._files:
            descriptor = os.open(path, os.O_RDONLY)
            os.fstat(descriptor)
            os.preadv(descriptor, [self._slot], 0)
            os.close(descriptor)

    def checksums(self) -> None:
        data = objects_abi.Span(self._container.header_bytes, self._container.object_bytes)
        digits = ctypes.create_string_buffer(32)
        for _ in self._files:
            objects_abi.library().kvl_checksum(0, Buffer.of(self._slot).pointer, ctypes.byref(data), 1, digits)

    def convert(self) -> None:
        native.run(make_plan(passing(self._container, self._slot, 0, TOKENS), self._target))

    def store(self) -> None:
        """A prompt that isn't stored yet, each time."""
        self._prompts += 1
        prompt = [self._prompts - 1, *range(1, TOKENS)]
        handle = self._cache.store(NAMESPACE, prompt, self._source, 0, TOKENS)
        assert handle.stored == TOKENS // 64, handle

    def write(self) -> None:
        """What `store` has left to the write thread; the files are removed afterwards by the caller."""
        self._cache.flush(60)


def measure(rounds: int, root: Path) -> dict[str, list[float]]:
    """Seconds of CPU time of each row in each round."""
    times: dict[str, list[float]] = {}
    with KVCache.open(Config(url=(root / "store").as_uri())) as cache:
        rows = Rows(cache, root / "store")
        ways: dict[str, Callable[[], None]] = {
            "memcpy": rows.memcpy,
            "load": rows.load,
            "  files opened and read": rows.read,
            "  checksums": rows.checksums,
            "  conversion": rows.convert,
            "load, one by one": rows.load_one_by_one,
            "load an eighth of the heads": rows.load_an_eighth,
            "lookup": rows.look_up,
            "store, until the engine goes on": rows.store,
            "store, written later": rows.write,
        }
        kept = set(root.glob("store/*/*"))
        for _ in range(rounds):
            for name, way in ways.items():
                begin = time.process_time()
                way()
                times.setdefault(name, []).append(time.process_time() - begin)
                if not name.startswith("store, until"):
                    cache.flush(60)  # what a load leaves to the write thread counts for nobody
            for path in set(root.glob("store/*/*")) - kept:
                path.unlink()
    return times


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", action="store_true", help="one object a row instead of a table")
    parser.add_argument("--check", action="store_true", help=f"exit 1 unless a load takes at most {AT_MOST:g} memcpy")
    options = parser.parse_args()
    torch.set_num_threads(1)
    root = Path(tempfile.mkdtemp(prefix="kvlingua-objects-"))
    try:
        times = measure(options.rounds, root)
    finally:
        shutil.rmtree(root)
    floor = times.pop("memcpy")
    typical = {name: statistics.median(each) / statistics.median(floor) for name, each in times.items()}
    for name, each in times.items():
        rounds = sorted(a / b for a, b in zip(each, floor, strict=True))
        row = {"name": name.strip(), "ratio": typical[name], "median": statistics.median(rounds)}
        row |= {"min": rounds[0], "max": rounds[-1]}
        line = f"{name:34} {typical[name]:6.2f} memcpy  ({rounds[0]:.2f} - {rounds[-1]:.2f})"
        print(json.dumps(row) if options.json else line)
    return 0 if typical["load"] <= AT_MOST or not options.check else 1


if __name__ == "__main__":
    sys.exit(main())
