"""One side stores, another reuses: the engine processes, and what is to hold of them."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from demo.job import CHUNK_TOKENS
from engines.drivers.driver import Driver
from engines.drivers.protocol import Reply
from engines.recipe import Recipe, names
from matrix.cells import Group, Side
from matrix.texts import ANSWER_TOKENS, Text, texts_of
from tests.spoil import flip_byte, negate_v

COLD = "cold"  # a cache salt: under it nothing is stored, neither by kvlingua nor by the engine
FLIPPED_CHUNK = 2
STORED_SECONDS = 180.0
# How many of an answer's tokens are compared, by dtype. The first one answers the question, and the demo's model is
# sure of it (probability 1.0). The others it makes up: 0.179 against 0.177 was seen for the fifth, and in bfloat16,
# where each engine rounds in its own way, such ties fall now this way, now that.
COMPARED = {"float32": ANSWER_TOKENS, "bfloat16": 1}


@dataclass(frozen=True)
class Outcome:
    """What a consumer made of one producer's texts. problems: what doesn't hold, a sentence each."""

    problems: Sequence[str]
    detail: str


def engine_of(side: Side) -> str:
    """What `Driver` calls it."""
    if side.engine not in names() or Recipe.named(side.engine).version == side.version:
        return side.engine
    return f"{side.engine}=={side.version}"


def launch(side: Side, group: Group, model: Path, log: Path, **options: Any) -> Driver:
    engine: dict[str, Any] = {}
    settings: dict[str, str] = {}
    if side.engine == "vllm":
        engine = {"tensor_parallel_size": side.tp} if side.tp > 1 else {}
        settings = {} if side.tp > 1 else {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}  # starts in a few seconds
    elif side.engine == "sglang" and side.tp > 1:
        engine, settings = {"tp_size": side.tp}, {"SGLANG_CPU_OMP_THREADS_BIND": "|".join(map(str, range(side.tp)))}
    store: Path | None = options.pop("store", None)
    return Driver(
        engine_of(side),
        model,
        log=log,
        url=store.as_uri() if store else None,
        page=side.page,
        dtype=group.dtype,
        engine=engine,
        settings=settings,
        **options,
    )


def produce(side: Side, group: Group, model: Path, work: Path) -> tuple[Path, str]:
    """Read the side's texts with an engine that stores; the store, and the engine's version."""
    store, texts = work / f"by-{side.file_name}", texts_of(side)
    with launch(side, group, model, work / f"{side.file_name}-producer.log", store=store, role="producer") as driver:
        check_version(side, driver)
        for text in texts:
            driver.generate(text.read())
        # Where heads aren't replicated, each rank writes its own object of a chunk.
        objects = side.tp * sum(len(text.read().prompt) // CHUNK_TOKENS for text in texts)
        driver.wait_objects(objects, timeout=STORED_SECONDS)
    return store, driver.ready.version


def consume(
    side: Side, group: Group, model: Path, work: Path, produced: Mapping[Side, Path]
) -> tuple[dict[Side, Outcome], str]:
    """Ask an engine for all the producers' texts, cold and from the store; what came of each, and its version."""
    store = work / f"for-{side.file_name}"  # its own, since a consumer removes what it finds damaged
    texts = {producer: texts_of(producer) for producer in produced}
    for producer, folder in produced.items():
        shutil.copytree(folder, store, dirs_exist_ok=True)
        spoil(store, texts[producer])
    asked = [text for several in texts.values() for text in several]
    log = work / f"{side.file_name}-consumer.log"
    if side.engine == "hf":  # it knows no salts
        with launch(side, group, model, work / f"{side.file_name}-cold.log", cache=False) as driver:
            cold = {id(text): driver.generate(text.reuse()) for text in asked}
    with launch(side, group, model, log, store=store, role="consumer") as driver:
        check_version(side, driver)
        if not driver.switched_on:
            why = [line for line in driver.log_text().splitlines() if "kvlingua" in line][-1:]
            return dict.fromkeys(produced, Outcome([f"kvlingua is off: {why}"], "off")), driver.ready.version

        def ask(text: Text, salt: str | None = None) -> Reply:
            if side.engine == "sglang":  # whose own cache shares what all texts begin with, in pages of one token
                driver.call("flush_cache")
            return driver.generate(text.reuse(salt))

        if side.engine != "hf":
            cold = {id(text): ask(text, COLD) for text in asked}
        warm = {id(text): ask(text) for text in asked}
        damaged = driver.metric_reaches("kvlingua_corrupt_objects_total", len(produced))
    found = {}
    for producer, several in texts.items():
        problems = [
            problem
            for text in several
            for problem in problems_of(text, side, cold[id(text)], warm[id(text)], COMPARED[group.dtype])
        ]
        if not damaged:
            problems.append("flipped: not every damaged object was counted")
        plain = warm[id(several[0])]
        found[producer] = Outcome(problems, f"{plain.reused} of {plain.prompt_tokens} tokens reused")
    return found, driver.ready.version


def check_version(side: Side, driver: Driver) -> None:
    """Raise RuntimeError unless the engine is of the version that the side names."""
    if not f"{driver.ready.version}.".startswith(f"{side.version}."):
        raise RuntimeError(f"{side.label}: the engine is {driver.ready.version}; build its environment anew")


def spoil(store: Path, texts: Sequence[Text]) -> None:
    """Negate all of one text's V, under checksums that are valid, and damage one chunk of another."""
    for text in texts:
        chunks = text.objects(store)
        if not all(chunks):
            raise RuntimeError(f"{text.kind}: of {len(chunks)} chunks {sum(map(bool, chunks))} were stored in {store}")
        if text.kind == "negated":
            for path in (path for chunk in chunks for path in chunk):
                negate_v(path)
        elif text.kind == "flipped":
            flip_byte(chunks[FLIPPED_CHUNK][-1])


def problems_of(text: Text, consumer: Side, cold: Reply, warm: Reply, compared: int = ANSWER_TOKENS) -> list[str]:
    """What doesn't hold of one text, a sentence each. compared: so many leading tokens of the answers."""
    found = []
    same = warm.answers[0].tokens[:compared] == cold.answers[0].tokens[:compared]
    wanted = text.wanted(consumer.page)
    if cold.reused or cold.computed != cold.prompt_tokens:
        found.append(f"{text.kind}: the reference isn't cold: {cold}")
    if text.kind == "flipped":
        if not same:
            found.append(f"{text.kind}: a damaged object changed the tokens: {warm}, cold {cold}")
        if warm.computed < warm.prompt_tokens - wanted + CHUNK_TOKENS:
            found.append(f"{text.kind}: a damaged chunk was not computed anew: {warm}")
        return found
    if warm.reused != wanted or warm.computed != warm.prompt_tokens - wanted:
        found.append(f"{text.kind}: {wanted} tokens should be reused, and the rest computed: {warm}")
    if same != (text.kind == "plain"):
        found.append(
            f"{text.kind}: tokens {'changed' if text.kind == 'plain' else 'did not change'}: {warm}, cold {cold}"
        )
    return found
