"""Between SGLang's scheduler and the store, for one scheduler process: what is asked, promised, loaded and stored.

Nothing here waits for a store, and nothing raises.
"""

from __future__ import annotations

import weakref
from array import array
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

import torch

from kvlingua.adapters.sglang.adapters import Adapters
from kvlingua.adapters.sglang.connection import Connection
from kvlingua.adapters.sglang.memo import MOST_LOADS, Load, Memo, Stage
from kvlingua.adapters.sglang.ranks import Ranks
from kvlingua.adapters.sglang.staging import Staging
from kvlingua.adapters.sglang.views import blocks_of
from kvlingua.common.cache import Hit, KVCache
from kvlingua.common.cpu_clock import clock_methods
from kvlingua.common.errors import KVLinguaError, LoadError, UnsupportedError
from kvlingua.common.guard import Guard
from kvlingua.common.identity.lora import with_adapter
from kvlingua.common.identity.model import ModelDescription
from kvlingua.common.identity.namespace import Namespace
from kvlingua.common.metrics import refused
from kvlingua.common.prefix import reusable_tokens
from kvlingua.layouts.view import Pool, View

PENDING, FAILED, LOADED = -1, -2, 1  # what a rank says of a load; of a question, PENDING or how many tokens it found


@clock_methods
class Link(Connection):
    """For the radix cache, which has the requests and their token ids."""

    def __init__(
        self,
        cache: KVCache,
        description: ModelDescription,
        pool: Pool,
        guard: Guard,
        ranks: Ranks | None = None,
    ) -> None:
        super().__init__(cache, description, pool, guard, ranks)
        self.adapters: Adapters | None = None
        self._staging = Staging(cache, pool)
        # By the request itself, not its rid, which users choose: two live ones may have the same.
        self._memos: weakref.WeakKeyDictionary[Any, Memo] = weakref.WeakKeyDictionary()
        self.step: Callable[[Sequence[Any], bool], set[int]] = _nobody  # `Waiting.step`, once there is one

    def memo(self, request: Any) -> Memo:
        """What is remembered about SGLang's Req."""
        memo = self._memos.get(request)
        if memo is None:
            memo = self._guard.run("request", Memo("error", b"", stage=Stage.SETTLED), Memo.of, request)
            self._memos[request] = memo
            if memo.reason not in (None, "error"):
                error = UnsupportedError(memo.reason, "the KV of such requests isn't a function of their token ids")
                self._guard.refuse("request", error, "it passes through")
        return memo

    def ask(self, request: Any, memo: Memo) -> None:
        """Have the request's tokens looked up, those it has generated included; `said` gives the answer."""
        memo.asked = request.origin_input_ids + request.output_ids
        memo.stage, memo.hit, memo.tokens, memo.loads = Stage.ASKED, None, 0, 0
        namespace = self._namespace_of(memo)
        if namespace is not None:
            memo.question = self._guard.run("lookup", None, self._submit_lookup, namespace, memo)

    def said(self, memo: Memo) -> int:
        """What this rank alone knows of a request that is ASKED or LOADING."""
        if memo.stage is Stage.ASKED:
            if memo.question is not None:
                if not memo.question.done():
                    return PENDING
                question, memo.question = memo.question.result(), None
                memo.hit = self._guard.run("lookup", None, question)
            return 0 if memo.hit is None else memo.hit.tokens
        if memo.load is None:
            return FAILED
        if not memo.load.handle.done():
            return PENDING
        return LOADED if memo.load.handle.error is None else FAILED

    def answered(self, memo: Memo, tokens: int) -> None:
        """All ranks have their answers: so many leading tokens are stored for each of them."""
        memo.tokens, memo.stage = tokens, Stage.KNOWN if tokens > 0 else Stage.SETTLED
        if memo.hit is not None:
            memo.digests = max(memo.digests, list(memo.hit.digests), key=len)
            memo.stored = max(memo.stored, memo.hit.tokens)

    def promised(self, memo: Memo, tokens: array[int], limit: int, have: int) -> int:
        """How many leading tokens of `tokens` a KNOWN or LOADED request may count on; 0 if no more than `have`.

        have: what the engine has itself. limit: what it would take at most.
        """
        if self._off or memo.stage not in (Stage.KNOWN, Stage.LOADED):
            return 0
        if memo.load is None and memo.loads >= MOST_LOADS:
            return 0
        page, length = self._pool.page, len(tokens)
        stop = min(reusable_tokens(memo.tokens, length, page), limit // page * page)
        if memo.load is not None and memo.load.start <= have:
            stop = min(stop, memo.load.stop)
        if stop <= have or tokens[:stop] != memo.asked[:stop]:
            return 0
        return stop

    def begin(self, memo: Memo, start: int, stop: int, slots: torch.Tensor | None) -> bool:
        """Load the tokens [start, stop) into the pool's rows `slots` [token]; None: there are none.

        False, on all ranks, if one of them can't: then the request is to be computed, and `slots` are the caller's.
        """
        load = None
        if slots is not None and memo.loads < MOST_LOADS:
            load = self._guard.run("load", None, self._submit, memo, start, stop, slots)
        if self.ranks.agree([load is not None]) == [True]:
            memo.load, memo.stage = load, Stage.LOADING
            memo.loads += 1
            return True
        if load is not None:
            load.handle.cancel()
        self.settle(memo)
        return False

    def loaded(self, memo: Memo, success: bool) -> None:
        """A load ended on all ranks. If one of them failed, none of it is used; the rows are for the caller to free."""
        if success:
            memo.stage = Stage.LOADED
            return
        load = memo.load
        if load is not None:
            load.handle.cancel()
            error = load.handle.error or LoadError("another rank couldn't load its heads")
            self._guard.refuse("load", error, "recomputing")
        self.settle(memo)

    def settle(self, memo: Memo) -> None:
        """Nothing more is promised. What was to be loaded may have gone: it is stored anew where it is missing."""
        self._staging.forget(memo.digests, memo.lora)
        memo.load, memo.hit, memo.stage, memo.stored = None, None, Stage.SETTLED, 0

    def store(self, request: Any, tokens: array[int], row: torch.Tensor) -> None:
        """Store the whole chunks of the request's computed `tokens`, which lie in the pool's rows `row` [token]."""
        if self._stores and not self._off:
            self._guard.run("store", None, self._store, request, tokens, row)

    def sweep(self) -> None:
        """Let go of memory that isn't needed any more."""
        self._guard.run("store", None, self._staging.sweep)

    def _namespace_of(self, memo: Memo) -> Namespace | None:
        """Where the request's KV belongs; None if there is no cache for it, or not yet. Ranks may differ in that."""
        namespace = self._namespace
        if namespace is None or memo.adapter is None:
            return namespace
        found = None
        if self.adapters is not None:
            found = self._guard.run("adapter", None, self.adapters.digest, memo.adapter)
        if isinstance(found, KVLinguaError):
            if not memo.passes:
                refused(self._guard.adapter, "lora")
            memo.passes = True
            return None
        if found is None:
            return None
        memo.lora = found
        return with_adapter(namespace, found)

    def _submit_lookup(self, namespace: Namespace, memo: Memo) -> Future[Callable[[], Hit]]:
        return self._cache.submit_lookup(namespace, memo.asked, seed=memo.seed, extent=self._pool.extent)

    def _submit(self, memo: Memo, start: int, stop: int, slots: torch.Tensor) -> Load:
        if self._off or memo.hit is None:
            raise LoadError(f"what was promised, {stop} tokens, is known no more")
        view = self._pool.view(blocks_of(slots, self._pool.page, start), start, stop)
        return Load(start, stop, slots, self._cache.submit_load(memo.hit, view, start, stop))

    def _store(self, request: Any, tokens: array[int], row: torch.Tensor) -> None:
        memo, page, chunk = self.memo(request), self._pool.page, self.chunk_tokens
        last = len(tokens) // chunk
        if memo.reason is not None or last * chunk <= memo.stored:
            return
        namespace = self._namespace_of(memo)
        if namespace is None:
            return

        def source_of(start: int, stop: int) -> View:
            before = start - start % page
            return self._pool.view(blocks_of(row[before:stop], page, before), start, stop)

        digests = memo.chain(tokens, chunk)
        first = self._staging.lacking(digests, memo.stored // chunk, namespace.lora)
        first = self._staging.store(namespace, digests, source_of, first, last)
        memo.stored = first * chunk
        if first < last and request.finished():  # else they may have room when it comes again
            self._cache.give_up(last - first)


def _nobody(queue: Sequence[Any], idle: bool) -> set[int]:
    """Who steps aside as long as nobody can."""
    return set()
