"""The behaviours that every adapter shows, as tests on real engine processes. One start serves many of them."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from kvlingua.adapters.conformance.checks import Cold, assert_right, copy_store, count, wait_for
from kvlingua.adapters.conformance.damage import flip_bit, negate_values, objects_of, truncate
from kvlingua.adapters.conformance.engine import Answered, HangingStore, Passing, Prompt, RunningEngine, Setup
from kvlingua.adapters.conformance.prompts import ANSWER, CHUNK, Prompts, chunks, common_tokens, length
from kvlingua.common.prefix import reusable_tokens

PATIENT: Mapping[str, Any] = {"lookup_timeout_s": 10, "load_timeout_s": 5, "chunk_tokens": CHUNK}


@dataclass(frozen=True)
class Written:
    """A store that two producers have filled at the same time, and what they said when asked once more."""

    store: Path
    namespaces: Sequence[str | None]
    first: Sequence[Answered]
    second: Sequence[Answered]


@dataclass(frozen=True)
class Reader:
    """An engine of role both, started after the writers ended, on a copy of their store in which some is spoiled."""

    engine: RunningEngine
    store: Path
    page: int
    hanging: HangingStore | None


class AdapterConformance:
    """Derive, set `model`, `other_model` and `pages`, override `start` and `prompt`, and what else your engine has."""

    model: Path
    """The folder of a small model whose answers depend on the KV of the whole prompt."""
    other_model: Path
    """The same architecture with other weights."""
    pages: tuple[int, int] = (1, 1)
    """Tokens per block or page of the writers, and of the readers."""
    other_dtype: str = "bfloat16"
    passing: Sequence[Passing] = ()
    """Requests that must neither be looked up nor stored, one for each kind the engine has."""

    @classmethod
    def start(cls, setup: Setup) -> AbstractContextManager[RunningEngine]:
        """An engine process of its own; with a store it is up when kvlingua is on, or has said why not."""
        raise AssertionError(f"{cls.__name__} must say how its engine is started")

    @classmethod
    def prompt(cls, seed: int, tokens: int) -> Sequence[int]:
        """About that many token ids, three quarters of it at least. Each seed gives another text, and the same first
        token."""
        raise AssertionError(f"{cls.__name__} must say what its model can read")

    @classmethod
    def hanging_store(cls, folder: Path) -> AbstractContextManager[HangingStore] | None:
        """A folder that can be made to hang; None: can't be had here, and the tests that need it are skipped."""
        return None

    @pytest.fixture(scope="class")
    @classmethod
    def prompts(cls) -> Prompts:
        return Prompts(cls.prompt)

    @pytest.fixture(scope="class")
    @classmethod
    def cold(cls, prompts: Prompts) -> Cold:
        """The answers of an engine without kvlingua."""
        with cls.start(Setup(cls.model, None, cls.pages[1])) as engine:
            cold = {}
            for prompt in prompts.all:
                engine.forget()
                cold[tuple(prompt.tokens)] = engine.generate(prompt).tokens[0]
            return cold

    @pytest.fixture(scope="class")
    @classmethod
    def written(cls, prompts: Prompts, tmp_path_factory: pytest.TempPathFactory) -> Written:
        store = tmp_path_factory.mktemp("written") / "store"
        setup = Setup(cls.model, store, cls.pages[0], role="producer", config=PATIENT)
        with ExitStack() as stack, ThreadPoolExecutor(2) as pool:
            engines = list(pool.map(stack.enter_context, [cls.start(setup), cls.start(setup)]))
            first = list(pool.map(lambda engine: engine.generate(*prompts.stored), engines))
            wait_for(lambda: count(store) >= chunks(*prompts.stored), f"{chunks(*prompts.stored)} objects")
            for engine in engines:
                engine.forget()
            second = list(pool.map(lambda engine: engine.generate(*prompts.stored), engines))
            namespaces = [engine.namespace for engine in engines]
        return Written(store, namespaces, first, second)

    @pytest.fixture(scope="class")
    @classmethod
    def reader(cls, prompts: Prompts, written: Written, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
        folder = tmp_path_factory.mktemp("reader")
        with ExitStack() as stack:
            context = cls.hanging_store(folder)
            hanging = stack.enter_context(context) if context is not None else None
            store = (hanging.path if hanging is not None else folder) / "store"
            copy_store(written.store, store)
            for path in objects_of(store, prompts.negated.tokens, CHUNK):
                negate_values(path)
            flip_bit(objects_of(store, prompts.flipped.tokens, CHUNK)[1])
            truncate(objects_of(store, prompts.cut.tokens, CHUNK)[0])
            setup = Setup(cls.model, store, cls.pages[1], config=PATIENT)
            yield Reader(stack.enter_context(cls.start(setup)), store, cls.pages[1], hanging)

    def test_writers_of_one_prefix_store_it_once(self, prompts: Prompts, written: Written, cold: Cold) -> None:
        """Two producers are given the same prompts at the same time."""
        assert written.namespaces[0] is not None, "kvlingua is off"
        assert written.namespaces[0] == written.namespaces[1]
        for answered in written.first:
            assert_right(answered, cold, *prompts.stored)
        for prompt in prompts.stored:
            assert count(written.store, prompt) == chunks(prompt), "whole chunks, each once"
        most = sum((len(prompt) + ANSWER) // CHUNK for prompt in prompts.stored)
        assert count(written.store) <= most, "nothing else but chunks that an answer completes"
        assert not list(written.store.rglob(".tmp-*")), "nothing is half written"

    def test_a_producer_loads_nothing(self, prompts: Prompts, written: Written, cold: Cold) -> None:
        for answered in (*written.first, *written.second):
            assert_right(answered, cold, *prompts.stored)
            assert (answered.reused, answered.computed) == (0, length(*prompts.stored))

    def test_a_new_process_reuses_what_ended_ones_stored(self, prompts: Prompts, reader: Reader, cold: Cold) -> None:
        """h = min(stored, prompt - 1), rounded down to the page, neither more nor less, and the rest is computed."""
        for prompt in prompts.written:
            assert_reuses(reader, cold, prompt, chunks(prompt) * CHUNK)

    def test_the_last_token_is_computed(self, prompts: Prompts, reader: Reader, cold: Cold) -> None:
        """All of the prompt is stored."""
        assert_reuses(reader, cold, prompts.whole, len(prompts.whole))

    def test_a_prefix_is_reused_up_to_where_it_ends(self, prompts: Prompts, reader: Reader, cold: Cold) -> None:
        same = common_tokens(prompts.branched, prompts.written[1])
        assert same % CHUNK, "else the test shows nothing"
        assert_reuses(reader, cold, prompts.branched, same - same % CHUNK)

    def test_together(self, prompts: Prompts, reader: Reader, cold: Cold) -> None:
        reader.engine.forget()
        answered = reader.engine.generate(*prompts.written)
        assert_right(answered, cold, *prompts.written)
        wanted = sum(reusable_tokens(chunks(each) * CHUNK, len(each), reader.page) for each in prompts.written)
        assert (answered.reused, answered.computed) == (wanted, length(*prompts.written) - wanted)

    def test_what_is_stored_is_what_is_used(self, prompts: Prompts, reader: Reader, cold: Cold) -> None:
        """The control of all that reuses: V of the other sign changes the tokens."""
        reader.engine.forget()
        answered = reader.engine.generate(prompts.negated)
        assert answered.reused == reusable_tokens(chunks(prompts.negated) * CHUNK, len(prompts.negated), reader.page)
        assert list(answered.tokens[0]) != list(cold[tuple(prompts.negated.tokens)])

    @pytest.mark.parametrize(("kind", "damaged"), [("flipped", 1), ("cut", 0)])
    def test_damage_is_refused_removed_and_mended(
        self, prompts: Prompts, reader: Reader, cold: Cold, kind: str, damaged: int
    ) -> None:
        """It is seen after the promise, when the engine can but compute."""
        prompt: Prompt = getattr(prompts, kind)
        spoiled = objects_of(reader.store, prompt.tokens, CHUNK)[damaged].read_bytes()
        counted = reader.engine.metric("kvlingua_corrupt_objects_total")
        reader.engine.forget()
        answered = reader.engine.generate(prompt)
        assert_right(answered, cold, prompt)
        assert answered.computed >= len(prompt) - damaged * CHUNK, "nothing from the damaged chunk on is taken"
        wait_for(lambda: reader.engine.metric("kvlingua_corrupt_objects_total") >= counted + 1, "a corrupt object")
        wait_for(lambda: len(objects_of(reader.store, prompt.tokens, CHUNK)) >= chunks(prompt), "it to be stored anew")
        assert objects_of(reader.store, prompt.tokens, CHUNK)[damaged].read_bytes() != spoiled
        assert_reuses(reader, cold, prompt, chunks(prompt) * CHUNK)

    def test_kinds_that_pass_through(self, prompts: Prompts, reader: Reader) -> None:
        """Each is asked with a prompt that is stored and with one that isn't."""
        if not self.passing:
            pytest.skip("the harness names no kind of request that passes through")
        engine = reader.engine
        for each in self.passing:
            before, counted = count(reader.store), engine.metric("kvlingua_refusals_total", reason=each.reason)
            for prompt in (prompts.written[0], prompts.passing):
                engine.forget()
                answered = engine.generate(replace(prompt, options=each.options(prompt.tokens)))
                assert (answered.reused, answered.computed) == (0, len(prompt)), each.kind
            wait_for(partial(self.counted, engine, each.reason, counted + 2), f"{each.kind} to be counted")
            engine.forget()
            engine.generate(prompts.written[0])  # what was wrongly handed to the store would be there before this ends
            assert count(reader.store) == before, each.kind

    def test_a_cancelled_request_leaves_no_trace(self, prompts: Prompts, reader: Reader, cold: Cold) -> None:
        """Given up at once, while it is loaded or computed, and while it generates."""
        for steps in (0, 1, 2, 4):
            for prompt in (prompts.written[0], prompts.cancelled):
                reader.engine.forget()
                assert reader.engine.cancel(prompt, steps), "it had ended before"
        reader.engine.forget()
        assert_right(reader.engine.generate(prompts.cancelled), cold, prompts.cancelled)
        wait_for(lambda: count(reader.store, prompts.cancelled) == chunks(prompts.cancelled), "it to be stored")
        assert_reuses(reader, cold, prompts.cancelled, chunks(prompts.cancelled) * CHUNK)
        assert_reuses(reader, cold, prompts.written[0], chunks(prompts.written[0]) * CHUNK)

    def test_before_the_promise_an_error_is_a_miss(self, prompts: Prompts, reader: Reader, cold: Cold) -> None:
        """A file stands where the store's folder was; then the folder is back."""
        aside = reader.store.with_name("aside")
        reader.store.rename(aside)
        try:
            reader.store.write_text("no folder")
            for prompt in (prompts.written[0], prompts.away):
                reader.engine.forget()
                answered = reader.engine.generate(prompt)
                assert_right(answered, cold, prompt)
                assert (answered.reused, answered.computed) == (0, len(prompt))
        finally:
            reader.store.unlink()
            aside.rename(reader.store)
        self.comes_back(reader, cold, prompts)

    def test_a_store_that_hangs(self, prompts: Prompts, reader: Reader, cold: Cold) -> None:
        if reader.hanging is None:
            pytest.skip("the harness has no folder that can be made to hang")
        counted = reader.engine.metric("kvlingua_refusals_total", reason="store_timeout")
        reader.hanging.freeze()
        try:
            for prompt in (prompts.written[0], prompts.hanging):
                reader.engine.forget()
                answered = reader.engine.generate(prompt)
                assert_right(answered, cold, prompt)
                assert (answered.reused, answered.computed) == (0, len(prompt))
        finally:
            reader.hanging.thaw()
        wait_for(partial(self.counted, reader.engine, "store_timeout", counted + 1), "the silence to be counted")
        self.comes_back(reader, cold, prompts)

    def test_a_consumer_stores_nothing(
        self, prompts: Prompts, written: Written, cold: Cold, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        store = copy_store(written.store, tmp_path_factory.mktemp("consumer") / "store")
        before = count(store)
        setup = Setup(self.model, store, self.pages[1], role="consumer", config=PATIENT)
        with self.start(setup) as engine:
            reader = Reader(engine, store, self.pages[1], None)
            assert_reuses(reader, cold, prompts.fresh, 0)
            assert_reuses(reader, cold, prompts.written[0], chunks(prompts.written[0]) * CHUNK)
            assert_reuses(reader, cold, prompts.fresh, 0)
        assert count(store) == before, "the engine has ended: whatever it had to store would be there"

    def test_another_dtype_is_a_miss(self, prompts: Prompts, written: Written) -> None:
        self.misses(prompts, written, dtype=self.other_dtype)

    def test_another_model_is_a_miss(self, prompts: Prompts, written: Written) -> None:
        self.misses(prompts, written, model=self.other_model)

    def test_a_store_that_hangs_from_the_start_and_is_full(
        self, prompts: Prompts, written: Written, cold: Cold, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        """With another chunk size, so that nothing hits. There is room for the objects of 160 tokens."""
        folder, page = tmp_path_factory.mktemp("full"), self.pages[1]
        with ExitStack() as stack:
            context = self.hanging_store(folder)
            hanging = stack.enter_context(context) if context is not None else None
            store = copy_store(written.store, (hanging.path if hanging is not None else folder) / "store")
            room = 5 * max(path.stat().st_size for path in store.rglob("*.safetensors")) // 2
            config = {**PATIENT, "chunk_tokens": CHUNK // 2, "max_bytes": room}
            if hanging is not None:
                hanging.freeze()
                stack.callback(hanging.thaw)
            engine = stack.enter_context(self.start(Setup(self.model, store, page, config=config)))
            assert engine.namespace not in (None, written.namespaces[0])
            assert_right(engine.generate(prompts.away), cold, prompts.away)
            if hanging is not None:
                hanging.thaw()
            engine.forget()
            first = engine.generate(prompts.written[0])
            assert_right(first, cold, prompts.written[0])
            assert (first.reused, first.computed) == (0, len(prompts.written[0])), "chunks of another size hit"

            def is_full() -> bool:
                engine.forget()
                assert_right(engine.generate(prompts.long), cold, prompts.long)
                return engine.metric("kvlingua_drops_total", reason="store_full") > 0

            wait_for(is_full, "chunk is dropped")
            wait_for(lambda: sum(path.stat().st_size for path in store.rglob("*.safetensors")) <= room, "room")
            engine.forget()
            head = engine.generate(prompts.long)
            assert_right(head, cold, prompts.long)
            assert 0 < head.reused <= 160, "the head of what doesn't fit is kept"

    def misses(self, prompts: Prompts, written: Written, **changed: Any) -> None:
        """An engine that differs in `changed` finds nothing of the store, and then its own."""
        setup = replace(Setup(self.model, written.store, self.pages[1], config=PATIENT), **changed)
        prompt, before = prompts.written[0], count(written.store)
        with self.start(setup) as engine:
            assert engine.namespace not in (None, written.namespaces[0])
            answered = engine.generate(prompt)
            assert (answered.reused, answered.computed) == (0, len(prompt))
            wait_for(lambda: count(written.store) >= before + chunks(prompt), "objects of another namespace")
            engine.forget()
            again = engine.generate(prompt)
            assert again.reused == reusable_tokens(chunks(prompt) * CHUNK, len(prompt), self.pages[1]), "its own"

    def counted(self, engine: RunningEngine, reason: str, refusals: float) -> bool:
        return engine.metric("kvlingua_refusals_total", reason=reason) >= refusals

    def comes_back(self, reader: Reader, cold: Cold, prompts: Prompts) -> None:
        """A store that was in trouble is asked again, after a while."""

        def reused() -> bool:
            reader.engine.forget()
            answered = reader.engine.generate(prompts.written[0])
            assert_right(answered, cold, prompts.written[0])
            return answered.reused > 0

        wait_for(reused, "a hit")


def assert_reuses(reader: Reader, cold: Cold, prompt: Prompt, stored: int) -> None:
    """Exactly what DESIGN says is reused of a prompt of which `stored` tokens are stored, and the tokens are right."""
    reader.engine.forget()
    answered = reader.engine.generate(prompt)
    wanted = reusable_tokens(stored, len(prompt), reader.page)
    assert_right(answered, cold, prompt)
    assert (answered.reused, answered.computed) == (wanted, len(prompt) - wanted)
