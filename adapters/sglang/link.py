"""Between SGLang's radix cache and the store: what is promised, loaded and stored, for one scheduler process."""

from __future__ import annotations

import weakref
from array import array
from typing import Any

import torch

from kvlingua.adapters.sglang.memo import Memo
from kvlingua.adapters.sglang.views import blocks_of
from kvlingua.common.activation import Activation
from kvlingua.common.cache import KVCache
from kvlingua.common.cpu_clock import clock_methods
from kvlingua.common.errors import LoadError, UnsupportedError
from kvlingua.common.guard import Guard
from kvlingua.common.identity.model import ModelDescription
from kvlingua.common.prefix import reusable_tokens
from kvlingua.layouts.view import Pool


@clock_methods
class Link:
    """`pool`: SGLang's live KV, in blocks of its page.

    There is no cache until the weights' digest is known, and none any more once `switch_off` was called. None of the
    methods raises: SGLang's scheduler calls them.
    """

    def __init__(self, cache: KVCache, description: ModelDescription, pool: Pool, guard: Guard) -> None:
        self._cache = cache
        self._activation = Activation(cache, description, guard)
        self._pool = pool
        self._guard = guard
        # By the request itself, not its rid, which users choose: two live ones may have the same.
        self._memos: weakref.WeakKeyDictionary[Any, Memo] = weakref.WeakKeyDictionary()
        self._loads = cache.config.role != "producer"
        self._stores = cache.config.role != "consumer"

    def start(self) -> None:
        """Find out the namespace in a thread of its own: the weights are read once per machine, which takes a while."""
        self._activation.start(self._pool.layout.name, self._pool.page)

    def switch_off(self, reason: str, message: str) -> None:
        """No look-ups, loads and stores any more, until the engine is started anew. `reason`: a code for metrics."""
        self._activation.off(reason, message)

    def promise(self, request: Any, tokens: array[int], limit: int, have: int) -> int:
        """How many leading tokens of `tokens` the request may count on; 0 if that is no more than `have`.

        have: what the engine has itself. limit: what it would take at most.
        """
        if not self._loads or self._activation.namespace is None:
            return 0
        return self._guard.run("lookup", 0, self._promise, request, tokens, limit, have)

    def load(self, request: Any, have: int, stop: int, slots: torch.Tensor) -> bool:
        """Copy the tokens [have, stop) that were promised into the pool's rows `slots` [token].

        False: the engine must compute them all. Some of the rows may hold verified KV by then; nothing more is written.
        """
        if self._guard.promised("load", self._load, request, have, stop, slots):
            return True
        self.refuse(request, stop)
        return False

    def refuse(self, request: Any, stop: int) -> None:
        """The promise of the first `stop` tokens can't be kept; it won't be made again for this request."""
        memo = self._memos.get(request)
        if memo is not None:
            memo.refuse(stop)

    def store(self, request: Any, up_to: int, row: torch.Tensor) -> None:
        """Store the whole chunks of the prompt among the first `up_to` tokens.

        row: the pool's rows in which their computed KV lies, [token].
        """
        if self._stores and self._activation.namespace is not None:
            self._guard.run("store", None, self._store, request, up_to, row)

    def _memo(self, request: Any) -> Memo:
        memo = self._memos.get(request)
        if memo is None:
            memo = self._memos[request] = Memo.of(request)
            if memo.reason is not None:
                error = UnsupportedError(memo.reason, "the KV of such requests isn't a function of their token ids")
                self._guard.refuse("request", error, "it passes through")
        return memo

    def _promise(self, request: Any, tokens: array[int], limit: int, have: int) -> int:
        namespace, page = self._activation.namespace, self._pool.page
        memo = self._memo(request)
        if namespace is None or memo.reason is not None:
            return 0
        length, chunk = len(tokens), namespace.chunk_tokens
        most = min(reusable_tokens(length // chunk * chunk, length, page), limit // page * page)
        if most <= have:
            return 0
        prompt = request.origin_input_ids  # all that is stored of it; `tokens` may go on with what was generated
        if tokens[: min(most, len(prompt))] != prompt[:most]:
            return 0
        digests = memo.chain(prompt, chunk)
        if memo.must_ask:
            memo.answered(None)  # also if it fails: an error isn't asked for again at every step
            memo.answered(self._cache.lookup(namespace, prompt, seed=memo.seed, digests=digests))
        if memo.hit is None:
            return 0
        stop = min(reusable_tokens(memo.hit.tokens, length, page), most)
        return stop if stop > have and stop not in memo.refused else 0

    def _load(self, request: Any, have: int, stop: int, slots: torch.Tensor) -> None:
        memo = self._memos.get(request)
        if self._activation.namespace is None or memo is None or memo.hit is None or memo.hit.tokens < stop:
            raise LoadError(f"what was promised, {stop} tokens, is known no more")
        view = self._pool.view(blocks_of(slots, self._pool.page, have), have, stop)
        self._cache.load(memo.hit, view, have, stop)
        chunk = memo.hit.namespace.chunk_tokens
        memo.stored = max(memo.stored, stop // chunk * chunk)

    def _store(self, request: Any, up_to: int, row: torch.Tensor) -> None:
        namespace, page = self._activation.namespace, self._pool.page
        memo = self._memo(request)
        if namespace is None or memo.reason is not None:
            return
        prompt = request.origin_input_ids
        start, stop = memo.stored, min(up_to, len(prompt))
        stop -= stop % namespace.chunk_tokens
        if stop <= start:
            return
        first = start - start % page
        source = self._pool.view(blocks_of(row[first:stop], page, first), start, stop)
        digests = memo.chain(prompt, namespace.chunk_tokens)
        handle = self._cache.store(namespace, prompt, source, start, stop, seed=memo.seed, digests=digests)
        if not handle.dropped:
            memo.stored = stop
