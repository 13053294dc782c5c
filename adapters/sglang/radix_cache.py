"""SGLang's radix cache, which also loads what the store has and stores what it is given.

Looked up in `match_prefix`, which runs any number of times and for requests that are never admitted; loaded at
admission, in `init_load_back`; stored in `checkpoint`. Exceptions that escape from here end the engine, so everything
of ours goes through `Link`, which doesn't raise; SGLang's own calls stay outside of its guard.
"""

from typing import Any

import torch
from sglang.srt.mem_cache.base_prefix_cache import (
    EvictParams,
    InitLoadBackParams,
    InsertParams,
    MatchPrefixParams,
    MatchResult,
)
from sglang.srt.mem_cache.radix_cache import RadixKey
from sglang.srt.mem_cache.unified_radix_cache import UnifiedRadixCache

from kvlingua.adapters.sglang.link import Link


class KVLinguaRadixCache(UnifiedRadixCache):
    """Set `link` after construction: SGLang's constructor calls methods that are overridden here."""

    link: Link | None = None

    def match_prefix(self, params: MatchPrefixParams) -> MatchResult:
        """SGLang's own match; behind it, as a hit in host memory, what could be loaded."""
        result = super().match_prefix(params)
        key, request, have = params.key, params.req, result.device_prefix_len
        if self.link is None or request is None or key.is_bigram or result.host_hit_length or have % self.page_size:
            return result
        stop = self.link.promise(request, key.token_ids, len(key), have)
        if not stop:
            return result
        return result._replace(
            best_match_node=result.last_device_node,
            last_host_node=result.last_device_node,
            host_hit_length=stop - have,
            full_kv_hit_length=max(result.full_kv_hit_length, stop),
        )

    def init_load_back(self, params: InitLoadBackParams) -> tuple[int, Any] | None:
        """The request is admitted: load all that was promised, or nothing, in which case SGLang computes it.

        Returns the number of tokens loaded and the node they end at.
        """
        request, count = params.req, params.host_hit_length
        if self.link is None or request is None or not count:
            own: tuple[int, Any] | None = super().init_load_back(params)
            return own
        have = request.prefix_len
        stop = have + count
        allocator = self.token_to_kv_pool_allocator
        lacking = count - allocator.available_size()
        if lacking > 0:
            self.evict(EvictParams(num_tokens=lacking))
        slots = allocator.alloc(count)
        if slots is None:
            self.link.refuse(request, stop)
            return 0, request.last_node
        if not self.link.load(request, have, stop, slots):
            allocator.free(slots)
            return 0, request.last_node
        tokens = request.full_untruncated_fill_ids[:stop]
        head = self.path_device_indices(request.last_node)[:have]
        inserted = self.insert(
            InsertParams(
                key=RadixKey(tokens, request.extra_key, cache_salt=request.cache_salt),
                value=torch.cat([head.to(torch.int64), slots.to(torch.int64)]),
                prev_prefix_len=have,
                priority=request.priority or 0,
            )
        )
        return count, inserted.last_device_node

    def checkpoint(self, req: Any, *, up_to: int, **kwargs: Any) -> None:
        """The first `up_to` tokens of the request are computed."""
        super().checkpoint(req, up_to=up_to, **kwargs)
        if self.link is not None and req.kv.holds_kv:
            self.link.store(req, up_to, self.req_to_token_pool.req_to_token[req.kv.req_pool_idx, :up_to])
