"""The connector in vLLM's scheduler: looks prompts up, says how much can be taken, and orders what the workers are to
load and store.

Loads are ordered as asynchronous ones: vLLM holds a request back until its blocks are filled, goes on with others, and
only then shows the blocks to other requests. In the synchronous way the blocks are in vLLM's prefix cache before they
are filled, and stay there when the load fails: a request that is aborted before it has computed them leaves them behind
for others to take.
"""

import logging
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from typing import Any

from kvlingua.adapters.vllm.block_tables import BlockTables, tables_of
from kvlingua.adapters.vllm.groups import held_from
from kvlingua.adapters.vllm.lora import Adapters
from kvlingua.adapters.vllm.metadata import LoadOrder, StepOrders, StepResult, StoreOrder
from kvlingua.adapters.vllm.requests import only_stores, passes_through, seed_of
from kvlingua.adapters.vllm.switch import Switch
from kvlingua.common import log
from kvlingua.common.cache import Hit, KVCache
from kvlingua.common.guard import Guard
from kvlingua.common.identity.chain import chain_digests
from kvlingua.common.identity.lora import with_adapter
from kvlingua.common.identity.namespace import Namespace
from kvlingua.common.metrics import refused
from kvlingua.common.prefix import reusable_tokens

# So long in all a step of the scheduler's waits for answers to its lookups, before vLLM is told to ask again at the
# next: what a store that is well takes.
LOOKUP_WAIT_S = 0.005


@dataclass
class Tracked:
    """What is remembered of a request until it finishes."""

    request: Any = field(repr=False)
    prompt: int  # tokens of it, 0 if it takes no part
    seed: bytes
    loads: bool  # may anything be loaded for it
    stores: bool
    asked: Future[Callable[[], Hit]] | None = None
    lora: Any = None  # the adapter it runs with, a LoRARequest
    hit: Hit | None = None  # of the one lookup; asking again changes nothing
    asked_from: int = 0  # tokens that vLLM had itself when it asked last
    stored: int = 0  # tokens up to which chunks are in the store or on their way
    copied_from: int | None = None  # how often it had been preempted when the workers were last told to read its blocks
    digests: list[bytes] = field(default_factory=list)  # of the chunks that were asked for so far


class SchedulerSide:
    """One engine's requests. Every method is called by the scheduler's thread and none of them raises."""

    def __init__(
        self,
        cache: KVCache,
        switch: Switch,
        guard: Guard,
        page: int,
        adapters: Adapters,
        tables: BlockTables | None = None,
    ) -> None:
        """tables: where vLLM itself can't say which blocks a request has."""
        self._cache = cache
        self._adapters = adapters
        self._switch = switch
        self._guard = guard
        self._page = page
        self._tables = tables
        self._requests: dict[str, Tracked] = {}
        self._loads: list[LoadOrder] = []
        self._held: dict[str, Any] = {}  # requests that are over, whose blocks vLLM keeps for our copies
        self._forwards = 0
        self._patience = LOOKUP_WAIT_S  # what is left of it in this step

    def matched(self, request: Any, computed: int) -> int | None:
        """How many tokens after the first `computed` can be loaded for this request; None: ask again. No side effects
        but the memory of it."""
        return self._guard.run("lookup", 0, self._matched, request, computed)

    def allocated(self, request: Any, blocks: Any, external: int) -> None:
        """vLLM has made room for `external` tokens that were promised: order their load. blocks: its KVCacheBlocks."""
        if external > 0:
            failed = LoadOrder(request.request_id, None, (), 0, 0)
            self._loads.append(self._guard.run("load", failed, self._order, request, blocks, external))

    def orders(self, scheduled: Any) -> StepOrders:
        """What the workers are to do in the step that this SchedulerOutput describes."""
        self._patience = LOOKUP_WAIT_S
        loads, self._loads = tuple(self._loads), []
        self._forwards += scheduled.total_num_scheduled_tokens > 0
        if self._tables is not None and not self._guard.run("store", False, self._tables.note, scheduled):
            self._tables = None
            self._switch.off("blocks", "it isn't known any more which blocks a request has; restart vLLM")
        namespace = self._switch.namespace
        stores: tuple[StoreOrder, ...] = ()
        if namespace is not None and self._cache.config.role != "consumer":
            stores = self._guard.run("store", (), self._stores, scheduled, namespace)
        for order in stores:
            tracked = self._requests[order.request_id]
            tracked.copied_from = tracked.request.num_preemptions
        preempted = frozenset(scheduled.preempted_req_ids or ())
        for request_id in preempted & self._requests.keys():
            self._requests[request_id].stored = 0  # some of it may not have been copied
        return StepOrders(
            loads, stores, namespace if stores else None, self._forwards, preempted, self._switch.unproved
        )

    def result(self, result: StepResult) -> None:
        """What the workers report: requests whose load failed are computed by vLLM, and stored anew."""
        for request_id in result.failed:
            if tracked := self._requests.get(request_id):
                tracked.loads, tracked.stored = False, 0
        if result.off is not None:
            self._switch.off(*result.off)
        self._switch.proved(result.proved)

    def finished(self, request_id: str) -> bool:
        """The request is over, whether answered or aborted. True: vLLM must keep its blocks until all workers have
        said that they copy nothing out of them any more.

        Not of blocks that it has lost since: of those the workers say nothing, and vLLM dies of an answer that it gets
        twice, for the copies and for a load into the request's new blocks.
        """
        tracked = self._requests.pop(request_id, None)
        if tracked is None or tracked.copied_from != tracked.request.num_preemptions:
            return False
        self._held[request_id] = tracked.request
        return True

    def copied(self, request_ids: Iterable[str]) -> None:
        """vLLM was told that nothing is copied any more of these requests, which are over."""
        for request_id in request_ids:
            self._held.pop(request_id, None)

    def free_held(self, kv_cache_manager: Any) -> None:
        """Give vLLM the blocks that it keeps for our copies, of which there are no more. It frees none twice."""
        for request_id in list(self._held):
            kv_cache_manager.free(self._held.pop(request_id))

    def _matched(self, request: Any, computed: int) -> int | None:
        if request.lora_request is not None:
            self._adapters.note(request.lora_request)  # also while there is no cache
        namespace = self._switch.namespace
        if namespace is None:
            return 0
        tracked = self._track(request)
        tracked.asked_from = computed
        if not tracked.loads:
            return 0
        if tracked.hit is None:
            if tracked.asked is None:
                if tracked.lora is not None:
                    digest = self._adapters.digest(tracked.lora)
                    if digest is None:
                        return 0
                    namespace = with_adapter(namespace, digest)
                tokens = tracked.request.all_token_ids[: tracked.prompt]
                digests = self._digests(tracked, tracked.prompt)
                tracked.asked = self._cache.submit_lookup(namespace, tokens, seed=tracked.seed, digests=digests)
                began = time.monotonic()
                wait([tracked.asked], max(0.0, self._patience))
                self._patience -= time.monotonic() - began
            if not tracked.asked.done():
                return None
            tracked.loads = False  # unless the lookup has succeeded: one that raises isn't tried again for this request
            tracked.hit = tracked.asked.result()()
            tracked.loads = True
            tracked.stored = tracked.hit.tokens
        return max(0, reusable_tokens(tracked.hit.tokens, tracked.prompt, self._page) - computed)

    def _order(self, request: Any, blocks: Any, external: int) -> LoadOrder:
        tracked = self._requests[request.request_id]
        tables = tuple(tuple(table) for table in blocks.get_block_ids())
        start = tracked.asked_from
        return LoadOrder(request.request_id, tracked.hit, tables, start, start + external)

    def _track(self, request: Any) -> Tracked:
        tracked = self._requests.get(request.request_id)
        if tracked is None:
            reason = passes_through(request)
            if reason is not None:
                refused("vllm", reason)
                log.once(
                    f"vllm request {reason}",
                    logging.INFO,
                    f"vllm: requests of this kind pass through without cache: {reason}",
                )
            role = self._cache.config.role
            # Where adapters are enabled, vLLM's kernels for CPUs take "no adapter" (-1) for its last slot's: what they
            # compute without one, beside others or in a decode, is wrong once that slot is in use.
            sound = request.lora_request is not None or not self._adapters.enabled
            tracked = Tracked(
                request,
                prompt=0 if reason else len(request.prompt_token_ids),
                seed=b"" if reason else seed_of(request),
                loads=reason is None and role != "producer" and not only_stores(request),
                stores=reason is None and role != "consumer" and sound,
                lora=request.lora_request,
            )
            self._requests[request.request_id] = tracked
        return tracked

    def _stores(self, scheduled: Any, namespace: Namespace) -> tuple[StoreOrder, ...]:
        blocks_of = tables_of(scheduled) if self._tables is None else self._tables.of
        before = {new.req_id: new.num_computed_tokens for new in scheduled.scheduled_new_reqs}
        cached = scheduled.scheduled_cached_reqs
        before.update(zip(cached.req_ids, cached.num_computed_tokens, strict=True))
        orders = []
        for request_id, tokens in scheduled.num_scheduled_tokens.items():
            tracked = self._requests.get(request_id)
            if tracked is None or not tracked.stores:
                continue
            # A token that vLLM has sampled has KV after the step that reads it.
            stop = min(before[request_id] + tokens, tracked.request.num_tokens)
            stop -= stop % namespace.chunk_tokens
            if stop > tracked.stored:
                lora = None if tracked.lora is None else self._adapters.digest(tracked.lora)
                if tracked.lora is not None and lora is None:
                    continue  # until it is known
                tables = blocks_of(request_id)
                start = held_from(tables, self._page, tracked.stored, stop)  # what a window has left behind is lost
                digests = tuple(self._digests(tracked, stop))
                orders.append(StoreOrder(request_id, digests, tables, start, stop, lora))
                tracked.stored = stop
        return tuple(orders)

    def _digests(self, tracked: Tracked, tokens: int) -> list[bytes]:
        """Of the whole chunks of the first `tokens` tokens. Tokens are added to a request, never changed."""
        chunk = self._cache.config.chunk_tokens
        known = len(tracked.digests)
        if tokens // chunk > known:
            more = tracked.request.all_token_ids[known * chunk : tokens]
            previous = tracked.digests[-1] if known else tracked.seed
            tracked.digests += chain_digests(more, chunk, previous)
        return tracked.digests[: tokens // chunk]
