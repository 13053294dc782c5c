"""The main job: one engine reads a document and answers; each of the others answers from what the first has stored."""

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from demo.documents import Document, Question, make_document, unseen_document
from demo.model.vocabulary import WORDS
from engines.drivers.driver import Driver, DriverError
from engines.drivers.protocol import Ask, Reply
from kvlingua.common.identity.chain import chain_digests
from kvlingua.common.prefix import reusable_tokens

MODEL = Path(__file__).resolve().parent / "model" / "weights"
# vLLM's default on a CPU is 128 and its smallest 32, which reuses more of a short document; SGLang's default is 1.
PAGES: Mapping[str, int] = {"hf": 1, "vllm": 32, "sglang": 16}
CHUNK_TOKENS = 64
ANSWER_TOKENS = 1  # the model answers with one word
WARM_UP_TOKENS = 200
STORE_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Row:
    """What one engine did. Token counts are of the main prompt; times are to the first token, in seconds.

    computed  is the engine's own count, never prompt - reused
    wanted    tokens that DESIGN's rule says must be reused (0 for the first engine, which finds an empty store)
    cold_*    on an unseen document of the same length, in the same warmed process
    warm_s    on the shared document; None for the first engine, which reads it
    """

    engine: str
    version: str
    prompt: int
    reused: int
    computed: int
    wanted: int
    cold_reused: int
    cold_s: float | None
    warm_s: float | None
    answer: str
    expected: str

    def problems(self) -> list[str]:
        """What did not hold, one sentence each."""
        found = []
        if self.answer != self.expected:
            found.append(f"{self.engine} answered {self.answer!r}, right is {self.expected!r}")
        if self.cold_reused:
            found.append(f"{self.engine} reused {self.cold_reused} tokens of a document nobody had read")
        if self.reused < self.wanted:
            found.append(f"{self.engine} reused {self.reused} tokens, {self.wanted} were stored and fit its pages")
        if self.reused + self.computed != self.prompt:
            found.append(
                f"{self.engine} reused {self.reused} and computed {self.computed}, the prompt has {self.prompt}"
            )
        return found


def run(
    engines: Sequence[str], *, store: str, length: int, seed: int, logs: Path, say: Callable[[str], None]
) -> list[Row]:
    """Runs the job on `engines` in that order, each in its own process, sharing the store at URL `store`.

    Raises DriverError when an engine doesn't start or answer; its log lies in `logs`.
    """
    document = make_document(seed, length, questions=len(engines))
    rows: list[Row] = []
    for number, (engine, question) in enumerate(zip(engines, document.questions, strict=True)):
        say(f"{engine}: starting")
        with Driver(
            engine,
            MODEL,
            log=logs / f"{number}-{engine}.log",
            url=store,
            settings={"KVLINGUA_CHUNK_TOKENS": str(CHUNK_TOKENS)},
            page=PAGES[engine],
        ) as driver:
            say(f"{engine}: ready; reading an unseen document, then the shared one")
            rows.append(_ask(driver, store, document, question, first=not rows))
    return rows


def _ask(driver: Driver, store: str, document: Document, question: Question, *, first: bool) -> Row:
    # Other texts in every run, so that a store that is kept doesn't make the cold run warm.
    unseen = secrets.randbelow(1 << 30)
    warm_up = unseen_document(unseen, WARM_UP_TOKENS, questions=1)
    _generate(driver, warm_up, warm_up.questions[0])
    other = unseen_document(unseen + 1, len(document.ids), questions=1)
    cold = _generate(driver, other, other.questions[0])
    reply = _generate(driver, document, question)
    chunks = len(document.ids) // CHUNK_TOKENS
    if first:
        _wait_stored(Path(urlsplit(store).path), chain_digests(document.ids, CHUNK_TOKENS))
    answer = reply.answers[0]
    return Row(
        engine=driver.name,
        version=driver.ready.version,
        prompt=answer.prompt_tokens,
        reused=reply.reused,
        computed=reply.computed,
        wanted=0 if first else reusable_tokens(chunks * CHUNK_TOKENS, answer.prompt_tokens, driver.ready.page),
        cold_reused=cold.reused,
        cold_s=cold.answers[0].ttft_s,
        warm_s=None if first else answer.ttft_s,
        answer=question.answer if answer.tokens[0] == question.answer_id else WORDS[answer.tokens[0]],
        expected=question.answer,
    )


def _generate(driver: Driver, document: Document, question: Question) -> Reply:
    return driver.generate(Ask(document.prompt(question), max_tokens=ANSWER_TOKENS))


def _wait_stored(folder: Path, digests: Sequence[bytes]) -> None:
    """Waits until every chunk of these digests is visible to other processes. Raises DriverError after a while."""
    end = time.monotonic() + STORE_SECONDS
    while True:
        stored = {path.name.partition("-")[0] for path in folder.rglob("*.safetensors")}
        missing = [digest for digest in digests if digest.hex() not in stored]
        if not missing:
            return
        if time.monotonic() > end:
            raise DriverError(f"{len(missing)} of {len(digests)} chunks aren't in {folder} after {STORE_SECONDS:g} s")
        time.sleep(0.05)
