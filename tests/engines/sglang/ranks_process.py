"""Two ranks as SGLang has them, two processes with a group on CPUs, each with half of the heads, the adapter's real
link and waiting requests, and a folder for both: what one of them lacks, both do without. No engine runs."""

from __future__ import annotations

import json
import multiprocessing
import sys
import time
from array import array
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from sglang.srt.managers.schedule_batch import Req
from torch import distributed

from kvlingua.adapters.sglang.adapters import Adapters
from kvlingua.adapters.sglang.link import Link
from kvlingua.adapters.sglang.ranks import Ranks
from kvlingua.adapters.sglang.views import describe_pool
from kvlingua.adapters.sglang.waiting import Waiting
from kvlingua.common.cache import KVCache
from kvlingua.common.config import Config
from kvlingua.common.guard import Guard
from kvlingua.common.identity.chain import chain_digests
from kvlingua.common.identity.model import describe_model
from tests.engines.sglang.random_pool import PAGE, random_pool
from tests.engines.sglang.requests_process import NEW, PROMPT, SLOTS, STORED, TOKENS, request
from tests.spoil import flip_byte

ADAPTER = "0123456789abcdef" * 2


def manager(folder: Path, knows: bool) -> SimpleNamespace:
    """What SGLang's LoRAManager says of the adapter in a folder; a rank that doesn't know it has it no more."""
    wrapped = {f"model.layers.{layer}.self_attn.qkv_proj": None for layer in range(64)}
    configs = {ADAPTER: SimpleNamespace(path=str(folder))}
    return SimpleNamespace(lora_modules=[wrapped], configs=configs, lora_refs={ADAPTER: True} if knows else {})


class Rank:
    """One of the two; all of its methods are called by both, in the same order."""

    def __init__(self, model: str, folder: Path, ranks: Ranks) -> None:
        self.ranks, self.store_folder = ranks, folder / "store"
        description = describe_model(model, compute_dtype="float32", kv_dtype="float32")
        shape, extent = description.geometry, ranks.extent(description.geometry)
        kv = random_pool(shape, extent.heads)
        self.heads = f"h{extent.head_start}-{extent.head_stop}"
        self.cache = KVCache.open(Config(url=self.store_folder.as_uri()))
        pool = describe_pool(kv, shape, PAGE, extent)
        self.manager = manager(folder / "adapter", knows=ranks.rank == 0)
        self.adapters = Adapters(self.manager)
        self.link = Link(self.cache, description, pool, Guard("sglang"), ranks)
        self.link.adapters = self.adapters
        self.freed: list[torch.Tensor] = []
        self.waiting = Waiting(self.link, self.freed.append)
        self.link.start()

    def store(self, one: Req, chunks: int) -> None:
        for _ in range(200):  # until the weights are hashed
            self.link.store(one, one.full_untruncated_fill_ids[:TOKENS], SLOTS[:TOKENS])
            assert self.cache.flush(10)
            if self.objects() >= chunks:
                break
            time.sleep(0.05)
        distributed.barrier()

    def objects(self) -> int:
        """How many this rank has stored."""
        return sum(1 for _ in self.store_folder.rglob(f"*-{self.heads}-*.safetensors"))

    def on_second(self, change: Callable[[Path], object], prompt: array[int]) -> None:
        """Do this to the second rank's object of the prompt's second chunk."""
        if self.ranks.rank == 1:
            digest = chain_digests(prompt, 64)[1].hex()
            change(next(self.store_folder.rglob(f"{digest}-{self.heads}-*.safetensors")))
        distributed.barrier()

    def wait(self, one: Req) -> int:
        """Until it doesn't step aside; how many tokens it is promised then."""
        for _ in range(20000):
            if not self.waiting.step([one], idle=True):
                tokens = one.full_untruncated_fill_ids
                return self.link.promised(self.link.memo(one), tokens, len(tokens) - 1, 0)
        raise SystemExit("a request waits for ever")

    def with_adapter(self) -> list[int]:
        """Objects that this rank stores for a request with the adapter, and what another one is promised then."""
        while self.adapters.digest(ADAPTER) is None:
            time.sleep(0.05)
        before = self.objects()
        self.link.store(request(lora_id=ADAPTER), PROMPT[:TOKENS], SLOTS[:TOKENS])
        assert self.cache.flush(10)
        distributed.barrier()
        return [self.objects() - before, self.wait(request(lora_id=ADAPTER))]

    def begin(self, one: Req, slots: torch.Tensor | None) -> list[Any]:
        """Whether a load was begun; once it has ended, what is promised; how many tokens' memory was freed, and is
        held."""
        self.freed.clear()
        begun = self.waiting.begin(one, 0, STORED, slots)
        return [begun, self.wait(one), sum(map(len, self.freed)), self.waiting.held]


def main(rank: int, model: str, folder: Path, results: Any) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    ranks = Ranks(rank, 2, distributed.group.WORLD)
    mine, slots = Rank(model, folder, ranks), SLOTS[:STORED]
    mine.store(request(), 2)
    mine.store(request(NEW), 4)
    report: dict[str, Any] = {
        "same": [ranks.same("x"), ranks.same(str(rank)), ranks.same("x" if rank else None), ranks.same(None)],
        "one has no memory": mine.begin(prepared(mine), slots if rank == 0 else None),
        "both load": mine.begin(prepared(mine), slots),
    }
    one = prepared(mine)
    mine.on_second(flip_byte, PROMPT)
    report["one fails"] = mine.begin(one, slots)
    mine.on_second(Path.unlink, NEW)
    report["one has less"] = mine.wait(request(NEW))
    report["one knows no digest"] = mine.with_adapter()
    mine.manager.lora_refs[ADAPTER] = True
    report["both know it"] = mine.with_adapter()
    results.put((rank, report))
    distributed.barrier()
    distributed.destroy_process_group()


def prepared(mine: Rank) -> Req:
    one = request()
    assert mine.wait(one) == STORED
    return one


if __name__ == "__main__":
    queue = multiprocessing.get_context("spawn").Queue()
    workers = [
        multiprocessing.get_context("spawn").Process(target=main, args=(rank, sys.argv[1], Path(sys.argv[2]), queue))
        for rank in range(2)
    ]
    for worker in workers:
        worker.start()
    reports = dict(queue.get(timeout=200) for _ in workers)
    for worker in workers:
        worker.join(60)
    print(json.dumps(reports))
