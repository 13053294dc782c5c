"""Every ordered pair of engines, across processes, in fp32: what one has read the other reuses, and answers as if cold.

Each engine is launched three times: without kvlingua (the reference), as a producer, and as a consumer of what all
three have produced. Each producer reads three documents of its own. One is left alone. In one the stored V is negated
under valid checksums, which must change the tokens, or the reuse is no reuse. In one a byte is flipped, which is seen
after the hit was promised: the document is computed anew, and right.
"""

import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from demo.documents import Document, make_document
from demo.job import CHUNK_TOKENS, MODEL, PAGES
from engines.drivers.driver import Driver
from engines.drivers.protocol import Ask, Reply
from engines.launch import engines
from kvlingua.common.identity.chain import chain_digests
from kvlingua.common.prefix import reusable_tokens
from matrix import results
from matrix.cells import Cell
from matrix.render import write_page
from tests.spoil import flip_byte, negate_v

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(900)]

ENGINES = engines()
KINDS = ("plain", "negated", "flipped")
LENGTH = 700  # tokens of a document: ten whole chunks and a part
ANSWER_TOKENS = 8
AT_ONCE = 2  # engines running at the same time


def document(producer: str, kind: str) -> Document:
    return make_document(seed=10 * ENGINES.index(producer) + KINDS.index(kind), length=LENGTH, questions=2)


DOCUMENTS = {(producer, kind): document(producer, kind) for producer in ENGINES for kind in KINDS}


def read_ask(one: Document) -> Ask:
    """What the producer is asked."""
    return Ask(one.prompt(one.questions[0]), max_tokens=ANSWER_TOKENS)


def reuse_ask(one: Document) -> Ask:
    """What the consumer is asked: another question about the same document."""
    return Ask(one.prompt(one.questions[1]), max_tokens=ANSWER_TOKENS)


def shared_chunks(one: Document) -> list[bytes]:
    """Chain digests of the chunks that both prompts begin with."""
    read, reuse = (chain_digests(ask.prompt, CHUNK_TOKENS) for ask in (read_ask(one), reuse_ask(one)))
    return [digest for digest, other in zip(read, reuse, strict=False) if digest == other]


def expected_reuse(one: Document, consumer: str) -> int:
    """h of DESIGN: whole stored chunks, one token left to compute, whole pages."""
    stored = len(shared_chunks(one)) * CHUNK_TOKENS
    return reusable_tokens(stored, len(reuse_ask(one).prompt), PAGES[consumer])


Replies: TypeAlias = dict[tuple[str, str], Reply]


@dataclass(frozen=True)
class Runs:
    """What each engine said: without kvlingua, and as a consumer; and what its consumer's metrics counted."""

    cold: dict[str, Replies]
    warm: dict[str, Replies]
    corrupt: dict[str, float]
    versions: dict[str, str]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    folder = tmp_path_factory.mktemp("pairs")

    def launch(engine: str, name: str, store: Path | None = None, **options: Any) -> Driver:
        url = store.as_uri() if store else None
        return Driver(engine, MODEL, log=folder / f"{engine}-{name}.log", url=url, page=PAGES[engine], **options)

    def cold(engine: str) -> tuple[str, Replies]:
        with launch(engine, "cold", cache=False) as driver:
            return driver.ready.version, {key: driver.generate(reuse_ask(one)) for key, one in DOCUMENTS.items()}

    def produce(engine: str) -> Path:
        store = folder / f"by-{engine}"
        asks = [read_ask(one) for (producer, _), one in DOCUMENTS.items() if producer == engine]
        with launch(engine, "producer", store, role="producer") as driver:
            for ask in asks:
                driver.generate(ask)
            driver.wait_objects(sum(len(ask.prompt) // CHUNK_TOKENS for ask in asks))
        return store

    def consume(engine: str, produced: list[Path]) -> tuple[Replies, float]:
        store = folder / f"for-{engine}"  # its own, since a consumer removes what it finds damaged
        for one in produced:
            shutil.copytree(one, store, dirs_exist_ok=True)
        for producer in ENGINES:
            spoil(objects(store, DOCUMENTS[producer, "negated"]), negate_v, folder / f"spoiling-{engine}")
            spoil(objects(store, DOCUMENTS[producer, "flipped"])[3:4], flip_byte, folder / f"spoiling-{engine}")
        with launch(engine, "consumer", store, role="consumer") as driver:
            replies = {key: driver.generate(reuse_ask(one)) for key, one in DOCUMENTS.items()}
            driver.metric_reaches("kvlingua_corrupt_objects_total", len(ENGINES))
            return replies, driver.metric("kvlingua_corrupt_objects_total")

    with ThreadPoolExecutor(AT_ONCE) as pool:
        produced = list(pool.map(produce, ENGINES))
        references = dict(zip(ENGINES, pool.map(cold, ENGINES), strict=True))
        consumers = dict(zip(ENGINES, pool.map(lambda engine: consume(engine, produced), ENGINES), strict=True))
    return Runs(
        cold={engine: replies for engine, (_, replies) in references.items()},
        warm={engine: replies for engine, (replies, _) in consumers.items()},
        corrupt={engine: count for engine, (_, count) in consumers.items()},
        versions={engine: version for engine, (version, _) in references.items()},
    )


def objects(store: Path, one: Document) -> list[Path]:
    """The stored objects of a document's shared chunks, in the text's order."""
    found = {path.name.partition("-")[0]: path for path in store.rglob("*.safetensors")}
    return [found[digest.hex()] for digest in shared_chunks(one)]


def spoil(paths: list[Path], how: Callable[[Path], int], work: Path) -> None:
    """Applies `how`, which spoils a whole store, to some objects of one."""
    for path in paths:
        (work / path.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.move(path, work / path.parent.name / path.name)
    assert how(work) == len(paths)
    for path in paths:
        shutil.move(work / path.parent.name / path.name, path)


def problems(runs: Runs, producer: str, consumer: str) -> list[str]:
    """What doesn't hold of a pair, one sentence each."""
    found = []
    for kind in KINDS:
        one = DOCUMENTS[producer, kind]
        cold, warm = runs.cold[consumer][producer, kind], runs.warm[consumer][producer, kind]
        same = warm.answers[0].tokens == cold.answers[0].tokens
        wanted = expected_reuse(one, consumer)
        if cold.reused or cold.computed != cold.prompt_tokens:
            found.append(f"{kind}: the reference isn't cold: {cold}")
        if kind == "flipped":
            if not same:
                found.append(f"{kind}: a damaged object changed the tokens: {warm}, cold {cold}")
            if warm.computed < warm.prompt_tokens - wanted + CHUNK_TOKENS:
                found.append(f"{kind}: a damaged chunk was not computed anew: {warm}")
            continue
        if warm.reused != wanted or warm.computed != warm.prompt_tokens - wanted:
            found.append(f"{kind}: {wanted} tokens should be reused, and the rest computed: {warm}")
        if same != (kind == "plain"):
            found.append(f"{kind}: tokens {'changed' if kind == 'plain' else 'did not change'}: {warm}, cold {cold}")
    right = DOCUMENTS[producer, "plain"].questions[1].answer_id
    if runs.warm[consumer][producer, "plain"].answers[0].tokens[0] != right:
        found.append("plain: the answer is wrong")
    return found


@pytest.mark.parametrize("consumer", ENGINES)
@pytest.mark.parametrize("producer", ENGINES)
def test_pair(runs: Runs, producer: str, consumer: str) -> None:
    found = problems(runs, producer, consumer)
    reply = runs.warm[consumer][producer, "plain"]
    results.append(
        Cell.of({"producer": producer, "consumer": consumer, "dtype": "float32", "device": "cpu"}),
        "red" if found else "green",
        {engine: runs.versions[engine] for engine in (producer, consumer)},
        f"{reply.reused} of {reply.prompt_tokens} tokens reused",
    )
    write_page()
    assert not found, "\n".join(found)


@pytest.mark.parametrize("consumer", ENGINES)
def test_each_damaged_object_is_counted_once(runs: Runs, consumer: str) -> None:
    assert runs.corrupt[consumer] == len(ENGINES)
