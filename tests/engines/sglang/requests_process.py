"""SGLang's real requests, waiting in the adapter's real queue, on its real link: who is served from a filled store, who
passes, and who gets the memory that a load holds."""

from __future__ import annotations

import gc
import json
import shutil
import sys
import tempfile
import time
from array import array
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from sglang.srt.beam_search.beam_group import BeamGroup
from sglang.srt.dllm.config import DllmConfig
from sglang.srt.managers.embed_types import PositionalEmbeds
from sglang.srt.managers.schedule_batch import FINISH_LENGTH, MultimodalInputs, Req
from sglang.srt.managers.scheduler import Scheduler
from sglang.srt.sampling.sampling_params import SamplingParams
from sglang.srt.session.session_controller import Session

from kvlingua.adapters.sglang.admission import watch_admission
from kvlingua.adapters.sglang.link import Link
from kvlingua.adapters.sglang.memo import MOST_STOOD, Memo, Stage
from kvlingua.adapters.sglang.releases import ABSENT
from kvlingua.adapters.sglang.requests import MARKS
from kvlingua.adapters.sglang.views import describe_pool
from kvlingua.adapters.sglang.waiting import Waiting
from kvlingua.common.cache import KVCache
from kvlingua.common.config import Config
from kvlingua.common.errors import KVLinguaError
from kvlingua.common.guard import Guard
from kvlingua.common.identity.model import describe_model
from tests.engines.sglang.random_pool import PAGE, ROWS, random_pool

TOKENS, STORED = 150, 128  # two whole chunks of 64
CHUNK_BYTES = 64 * 4 * 2 * 4 * 32 * 4  # of the demo's model: tokens, layers, K and V, heads, dims, float32
PROMPT = array("q", range(10, 10 + TOKENS))
NEW = array("q", range(400, 400 + TOKENS))
SLOTS = torch.arange(PAGE, PAGE + ROWS, dtype=torch.int32)


def dllm() -> DllmConfig:
    return DllmConfig("LowConfidence", {}, block_size=32, mask_id=1, max_running_requests=1)


# What is given to Req, or is set on it afterwards as SGLang does, by the attribute that marks the request.
GIVEN: dict[str, Callable[[], object]] = {
    "input_embeds": lambda: [[0.5] * 128] * TOKENS,
    "positional_embed_overrides": lambda: PositionalEmbeds(embeds=[torch.ones(1, 128)], positions=[3]),
    "token_type_ids": lambda: [0] * TOKENS,
    "multi_item_delimiter_indices": lambda: [50, 100],
    "decision_layout": lambda: [50, 100],
    "token_indices_to_pool": lambda: [149],
    "session": lambda: Session(1 << 20, "a"),
    "session_id": lambda: "a",
    "dllm_config": dllm,
}
SET: dict[str, Callable[[], object]] = {
    "multimodal_inputs": lambda: MultimodalInputs(mm_items=[]),
    "beam_group": lambda: BeamGroup(beam_width=2, max_new_tokens=4),
}


def request(prompt: array[int] = PROMPT, rid: str = "the same", mark: str = "", **given: Any) -> Req:
    if mark in GIVEN:
        given[mark] = GIVEN[mark]()
    made = Req(rid, "", prompt[:], SamplingParams(max_new_tokens=8), vocab_size=8192, **given)
    if mark in SET:
        setattr(made, mark, SET[mark]())
    made.full_untruncated_fill_ids = made.origin_input_ids + made.output_ids
    return made


class Bench:
    """A link on a pool of random numbers and a store; nothing of SGLang runs."""

    def __init__(self, model: str, folder: Path, **settings: Any) -> None:
        self.folder = folder
        config = Config(url=(folder / "store").as_uri(), **settings)
        description = describe_model(model, compute_dtype="float32", kv_dtype="float32")
        shape = description.geometry
        kv = random_pool(shape, shape.kv_heads)
        self.cache = KVCache.open(config)
        self.pool = describe_pool(kv, shape, PAGE)
        self.link = Link(self.cache, description, self.pool, Guard("sglang"))
        self.freed: list[torch.Tensor] = []
        self.waiting = Waiting(self.link, self.freed.append)
        self.link.start()
        control = request()
        for _ in range(200):  # until the weights are hashed
            self.store(control)
            if self.objects():
                return
            time.sleep(0.05)
        raise SystemExit("nothing was stored")

    def store(self, one: Req) -> None:
        self.link.store(one, one.full_untruncated_fill_ids[:TOKENS], SLOTS[:TOKENS])
        assert self.cache.flush(10)

    def wait(self, *ones: Req) -> None:
        """Until none of the requests in the queue, which are these, steps aside."""
        for _ in range(5000):
            if not self.waiting.step(ones, idle=True):
                return
            time.sleep(0.002)  # a step waits only while nobody could go on
        raise SystemExit("a request waits for ever")

    def promise(self, one: Req) -> int:
        self.wait(one)
        tokens = one.full_untruncated_fill_ids
        return self.link.promised(self.link.memo(one), tokens, len(tokens) - 1, 0)

    def load(self, one: Req, stop: int) -> bool:
        """Whether the tokens [0, stop) of the request come to lie in SLOTS."""
        assert self.waiting.begin(one, 0, stop, SLOTS[:stop])
        self.wait(one)
        slots = self.waiting.take(one, 0, stop)
        return slots is not None and torch.equal(slots, SLOTS[:stop])

    def objects(self) -> int:
        return sum(1 for _ in self.folder.rglob("*.safetensors"))

    def counts(self) -> tuple[int, int]:
        """Look-ups and objects so far."""
        return self.cache.stats["lookups"], self.objects()


def passing(bench: Bench, mark: str) -> dict[str, Any]:
    """The same ids as what is stored, and ids that aren't, in requests with this mark; beside them one without it."""
    before = bench.counts()
    stored, new = request(mark=mark), request(NEW, mark=mark)
    promised = [bench.promise(stored), bench.promise(new)]
    bench.store(stored)
    bench.store(new)
    grown = [now - then for now, then in zip(bench.counts(), before, strict=True)]
    return {"set": getattr(stored, mark) is not None, "promised": promised, "grown": grown, "control": control(bench)}


def control(bench: Bench) -> list[int]:
    """What an ordinary request is promised, and how many look-ups that took."""
    before, _ = bench.counts()
    return [bench.promise(request()), bench.counts()[0] - before]


def of_one_rid(bench: Bench) -> dict[str, Any]:
    """Requests that live at the same time and have one rid, as users may give it."""
    ones = {
        "plain": request(),
        "salted": request(cache_salt="red"),
        "keyed": request(extra_key="red"),
        "embeds": request(mark="input_embeds"),
        "plain again": request(),
    }
    promised = {name: bench.promise(one) for name, one in ones.items()}
    objects = bench.objects()
    bench.store(ones["embeds"])
    bench.store(ones["plain"])
    kept = bench.objects() - objects
    bench.store(ones["salted"])
    bench.link.settle(bench.link.memo(ones["plain"]))
    after = {name: bench.promise(ones[name]) for name in ("plain", "plain again")}
    return {"promised": promised, "stored anew": [kept, bench.objects() - objects], "after a refusal": after}


def retracted(bench: Bench, prompt: array[int]) -> dict[str, Any]:
    """Generated tokens follow the prompt; it waits again, and what it has generated is looked up too."""
    one = request(prompt)
    before = bench.promise(one), bench.counts()
    one.output_ids.extend(range(100, 160))
    one.full_untruncated_fill_ids = one.origin_input_ids + one.output_ids
    promised = [bench.promise(one) for _ in range(3)]
    loaded = bench.load(one, promised[-1])
    bench.store(one)
    grown = [now - then for now, then in zip(bench.counts(), before[1], strict=True)]
    return {"fresh": before[0], "promised": promised, "loaded": loaded, "grown": grown}


def holding(bench: Bench) -> dict[str, Any]:
    """Memory that loads hold: given back when SGLang wants it, freed when the request is gone or is given up."""
    report: dict[str, Any] = {}
    first, second = request(), request()

    def freed() -> list[int]:
        counts = [len(slots) for slots in bench.freed]
        bench.freed.clear()
        return counts

    def begin(*ones: Req) -> None:
        bench.wait(*ones)
        for index, one in enumerate(ones):
            assert bench.waiting.begin(one, 0, STORED, SLOTS[index * STORED : (index + 1) * STORED])

    other, unasked = request(NEW), request()
    bench.wait(first, second, other)
    assert bench.waiting.begin(first, 0, STORED, SLOTS[:STORED])
    report["beside"] = [bench.waiting.beside(one, 0, STORED) for one in (second, other, unasked)]
    bench.waiting.give_back(STORED)
    freed()
    begin(first, second)
    report["held"] = bench.waiting.held
    report["given back"] = [bench.waiting.give_back(STORED - 16), bench.waiting.held, freed()]
    report["promised again"] = [bench.promise(second), bench.waiting.held]
    bench.wait(second)  # the first one was aborted
    report["aborted"] = [bench.waiting.held, freed()]
    begin(second)
    bench.wait(second)
    report["a part"] = len(bench.waiting.take(second, 32, 96)), freed()
    begin(second)
    bench.wait(second)
    report["its head is gone"] = [bench.waiting.take(second, 0, STORED + 16), freed()]
    report["not promised any more"] = bench.promise(second)
    report["too often"] = [bench.waiting.begin(second, 0, STORED, SLOTS[:STORED]), freed()]
    report["computed then"] = [bench.promise(second), bench.link.memo(second).stage is Stage.SETTLED]
    third = request()
    bench.wait(third)
    report["no memory"] = [bench.waiting.begin(third, 0, STORED, None), bench.promise(third), bench.waiting.held]
    fourth = request()
    begin(fourth)
    bench.link.switch_off("weights", "they were changed")
    report["switched off"] = [sorted(bench.waiting.step([fourth], idle=True)), bench.waiting.held, freed()]
    report["off"] = bench.promise(request())
    return report


def standing(bench: Bench) -> list[list[bool]]:
    """Who lacks memory that a load holds: whether it steps aside in the next step and in that after it, time after
    time."""
    holder, lacks = request(), request()
    bench.wait(holder, lacks)
    found = []
    for _ in range(MOST_STOOD + 1):
        bench.waiting.begin(holder, 0, STORED, SLOTS[:STORED])
        bench.waiting.stand_behind(lacks)
        aside = [id(lacks) in bench.waiting.step([holder, lacks], idle=False)]
        bench.wait(holder, lacks)
        found.append([*aside, id(lacks) in bench.waiting.step([holder, lacks], idle=False)])
        bench.waiting.give_back(STORED)
        bench.link.memo(holder).loads = 0
    return found


def little_room(model: str, folder: Path) -> list[int]:
    """Objects that are stored, and chunks that are given up, of requests of two chunks where one has room at a time: of
    one that comes once, again, and once more when it has ended; then of one that has ended when it comes."""
    bench = Bench(model, folder, queue_bytes=CHUNK_BYTES * 3 // 2)
    found = [bench.objects()]

    def comes(one: Req) -> None:
        before = sum(found)
        bench.store(one)
        found.append(bench.objects() - before)

    one, ended = request(NEW), request(array("q", range(200, 200 + TOKENS)))
    comes(one)
    comes(one)
    one.finished_reason = ended.finished_reason = FINISH_LENGTH(8)
    comes(one)
    lost = [int(bench.cache.stats["drops"])]
    comes(ended)
    return [*found, *lost, int(bench.cache.stats["drops"])]


def settings_of(bench: Bench, model: str, note: str) -> str:
    """What ranks compare at their start, for a copy of the model whose configuration has this note."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(shutil.copytree(model, folder, dirs_exist_ok=True))
        config = json.loads((copy / "config.json").read_text()) | {"note": note}
        (copy / "config.json").write_text(json.dumps(config))
        description = describe_model(copy, compute_dtype="float32", kv_dtype="float32")
    try:
        return Link(bench.cache, description, bench.pool, Guard("sglang")).settings
    except KVLinguaError as error:
        return f"{type(error).__name__}: {error}"


def sleeps(bench: Bench) -> list[bool]:
    """Whether an idle scheduler of --sleep-on-idle sleeps, with a request in its queue and without."""
    watch_admission(bench.link, Guard("sglang"))
    slept: list[bool] = []
    sleeper = SimpleNamespace(maybe_sleep=lambda: slept.append(True))
    found = []
    for queue in ([request()], []):
        Scheduler.maybe_sleep_on_idle(SimpleNamespace(waiting_queue=queue, idle_sleeper=sleeper))
        found.append(bool(slept))
    return found


def remembered() -> int:
    """How many requests something is remembered about."""
    gc.collect()
    return sum(isinstance(one, Memo) for one in gc.get_objects())


def main() -> None:
    bench = Bench(sys.argv[1], Path(sys.argv[2]))
    alive = [request() for _ in range(3)]
    for one in alive:
        bench.promise(one)
    held = remembered()
    del alive, one
    report = {
        "objects": bench.objects(),
        "control": control(bench),
        "marks": sorted(set(MARKS) - set(ABSENT)),
        "passing": {mark: passing(bench, mark) for mark in (*GIVEN, *SET) if mark not in ABSENT},
        "one rid": of_one_rid(bench),
        "retracted": retracted(bench, PROMPT),
        "retracted, whole chunks": retracted(bench, PROMPT[:STORED]),
        "remembered": [held, remembered()],
    }
    before = bench.objects()
    bench.store(request(NEW))
    report["a key that is no text"] = bench.promise(request(extra_key="\ud800"))
    report["stored without a mark"] = bench.objects() - before
    notes = ("of one node", "of one node", "of another", "x" * (1 << 19))
    report["settings"] = [settings_of(bench, sys.argv[1], note) for note in notes]
    report["standing"] = standing(bench)
    report["holding"] = holding(bench)
    report["little room"] = little_room(sys.argv[1], Path(sys.argv[2]) / "little")
    report["sleeps"] = sleeps(bench)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
