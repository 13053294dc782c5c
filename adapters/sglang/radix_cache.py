"""SGLang's radix cache, which also has what the store has, and stores what it is given.

A stored prefix is promised in `match_prefix`, as a hit in host memory. When SGLang would admit the request,
`init_load_back` has it loaded in the background and answers "not yet"; the request steps aside (`Waiting`). When it is
loaded, and SGLang would admit it again, `init_load_back` puts it into the tree. What is computed is stored. Exceptions
that escape from here end the engine, so everything of ours goes through `Link`, which doesn't raise; SGLang's own calls
stay outside of its guard.
"""

from dataclasses import replace
from typing import Any

import torch
from sglang.srt.mem_cache.base_prefix_cache import (
    EvictParams,
    EvictResult,
    InitLoadBackParams,
    InsertParams,
    MatchPrefixParams,
    MatchResult,
)
from sglang.srt.mem_cache.radix_cache import RadixKey
from sglang.srt.mem_cache.unified_radix_cache import UnifiedRadixCache

from kvlingua.adapters.sglang import releases
from kvlingua.adapters.sglang.link import Link
from kvlingua.adapters.sglang.waiting import Waiting


class KVLinguaRadixCache(UnifiedRadixCache):
    """Set `link` and `waiting` after construction: SGLang's constructor calls methods that are overridden here."""

    link: Link | None = None
    waiting: Waiting | None = None

    def match_prefix(self, params: MatchPrefixParams) -> MatchResult:
        """SGLang's own match; behind it, as a hit in host memory, what could be loaded or is loaded."""
        result = super().match_prefix(params)
        key, request, have = params.key, params.req, releases.matched_tokens(result)
        if self.link is None or request is None or key.is_bigram or result.host_hit_length or have % self.page_size:
            return result
        stop = self.link.promised(self.link.memo(request), key.token_ids, len(key), have)
        if not stop:
            return result
        return result._replace(
            best_match_node=result.last_device_node,
            last_host_node=result.last_device_node,
            host_hit_length=stop - have,
            full_kv_hit_length=max(result.full_kv_hit_length, stop),
        )

    def init_load_back(self, params: InitLoadBackParams) -> tuple[Any, Any] | None:
        """The request could be admitted: give it all that was promised.

        Returns the number of tokens and the node they end at, (0, ...) if SGLang must compute them, or None: not yet.
        """
        request, count, waiting = params.req, params.host_hit_length, self.waiting
        if waiting is None or request is None or not count:
            own: tuple[Any, Any] | None = super().init_load_back(params)
            return own
        have = releases.prefix_tokens(request)
        slots = waiting.take(request, have, have + count)
        if slots is None:
            nothing = torch.empty(0, dtype=torch.int64)
            return None if self._begin(waiting, request, have, count) else releases.loaded(nothing, request.last_node)
        tokens = request.full_untruncated_fill_ids[: have + count]
        head = releases.prefix_rows(self, request)
        inserted = self.insert(
            InsertParams(
                key=RadixKey(tokens, request.extra_key, cache_salt=request.cache_salt),
                value=torch.cat([head.to(torch.int64), slots.to(torch.int64)]),
                prev_prefix_len=have,
                priority=request.priority or 0,
            )
        )
        return releases.loaded(slots, inserted.last_device_node)

    def _begin(self, waiting: Waiting, request: Any, have: int, count: int) -> bool:
        """Whether the request is to wait: for its own load, for another's, or for memory that others' loads hold.

        What others have loaded goes before this one waits: SGLang considers them behind it, once it is admitted.
        """
        if waiting.beside(request, have, have + count):
            return True
        allocator = self.token_to_kv_pool_allocator
        if allocator.available_size() < count:
            super().evict(EvictParams(num_tokens=count - allocator.available_size()))
        if allocator.available_size() < count:
            waiting.give_back(count - allocator.available_size(), loaded=True)
        if allocator.available_size() < count and waiting.held:
            waiting.stand_behind(request)
            return True
        return waiting.begin(request, have, have + count, allocator.alloc(count))

    def evict(self, params: EvictParams) -> EvictResult:
        """Also takes back memory of loads, if nothing else is left."""
        return self._with_loads(params, super().evict)

    def evict_for_alloc(self, params: EvictParams, **options: Any) -> EvictResult:
        return self._with_loads(params, lambda asked: super(KVLinguaRadixCache, self).evict_for_alloc(asked, **options))

    def _with_loads(self, params: EvictParams, evict: Any) -> EvictResult:
        allocator = self.token_to_kv_pool_allocator
        wanted = allocator.available_size() + params.num_tokens
        result: EvictResult = evict(params)
        if self.waiting is not None and self.waiting.held:
            freed = self.waiting.give_back(wanted - allocator.available_size())
            result = replace(result, num_tokens_evicted=result.num_tokens_evicted + freed)
        return result

    def evictable_size(self) -> int:
        """Memory of loads can be had at any time, so that it counts as evictable."""
        return int(super().evictable_size()) + (0 if self.waiting is None else self.waiting.held)

    def full_evictable_size(self) -> int:
        return int(super().full_evictable_size()) + (0 if self.waiting is None else self.waiting.held)

    def reset(self) -> None:
        if self.waiting is not None:
            self.waiting.give_back(self.waiting.held)
        super().reset()

    # What is computed comes by one of these, as the release has them (`releases`). It is copied before SGLang may give
    # rows of it away.

    def checkpoint(self, req: Any, *, up_to: int, **kwargs: Any) -> None:
        self._store(req, up_to)
        super().checkpoint(req, up_to=up_to, **kwargs)

    def insert_req(self, req: Any, *, up_to: int, **kwargs: Any) -> None:
        self._store(req, up_to)
        super().insert_req(req, up_to=up_to, **kwargs)

    def cache_finished_req(self, req: Any, is_insert: bool = True, *, kv_len_to_handle: int, **kwargs: Any) -> None:
        if is_insert:  # else it was aborted or retracted, of which the later releases hand over nothing
            self._store(req, kv_len_to_handle)
        super().cache_finished_req(req, is_insert=is_insert, kv_len_to_handle=kv_len_to_handle, **kwargs)

    def cache_unfinished_req(self, req: Any, *args: Any, **kwargs: Any) -> None:
        self._store(req, len(req.get_fill_ids()))
        super().cache_unfinished_req(req, *args, **kwargs)

    def _store(self, request: Any, computed: int) -> None:
        """The first `computed` tokens of the request are computed, those among them that it has generated too."""
        if self.link is not None and request.kv.holds_kv:
            tokens = (request.origin_input_ids + request.output_ids)[:computed]
            row = self.req_to_token_pool.req_to_token[request.kv.req_pool_idx, : len(tokens)]
            self.link.store(request, tokens, row)
