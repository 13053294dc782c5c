"""For those ways to the store by which SGLang hands over hashes of its pages, and never token ids.

SGLang chains the hashes of pages as kvlingua chains the digests of chunks, salts included. So where a page is as long
as a chunk they are the same, and what is stored by them is found by every other engine, and the other way round: the
hash says which tokens they are. That it is so is tried at start with SGLang's own functions.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any, ClassVar

import torch

from kvlingua.adapters.sglang import releases
from kvlingua.adapters.sglang.connection import Connection
from kvlingua.adapters.sglang.views import blocks_of
from kvlingua.common.cache import Hit
from kvlingua.common.errors import LoadError, UnsupportedError
from kvlingua.common.identity.chain import chain_digests, request_seed
from kvlingua.common.identity.namespace import Namespace
from kvlingua.layouts.view import View

_SALTS = ((None, None), ("key", None), (None, "salt"), ("key", "salt"))

# Arguments that allow requests which have to be kept apart, though the hashes of their pages don't do it, or not alike
# in all engines.
_APART = (
    ("enable_streaming_session", "requests of a streaming session, whose tokens SGLang rewrites,"),
    ("enable_lora", "requests with an adapter"),
    ("lora_paths", "requests with an adapter"),
)


class Pages(Connection):
    """Pages that follow one another in a text, from its first one or from any other on. Nothing here raises."""

    first_block: ClassVar[int] = 1
    """The first block of the pool in which KV may lie."""

    @classmethod
    def check(cls, arguments: Any, page: int, chunk: int) -> None:
        """Raise UnsupportedError unless the hashes of this SGLang's pages are digests of chunks."""
        from sglang.srt.arg_groups.overrides import resolution_result

        if not releases.ALL_WAS_RUN:
            raise UnsupportedError("version", f"with SGLang {releases.VERSION} only --radix-cache-backend was run")
        if page != chunk:
            raise UnsupportedError(
                "page_size",
                f"by this way a page of SGLang must be as long as a stored chunk (--page-size is {page}, chunk_tokens "
                f"is {chunk}): use --page-size {chunk}, or --radix-cache-backend kvlingua, which takes any page",
            )
        for name, requests in _APART:
            if resolution_result(arguments, name, None):
                flag = name.replace("_", "-")
                raise UnsupportedError(name, f"by this way {requests} can't be told from others (--{flag})")
        if not _chained_alike(page):
            raise UnsupportedError("page_hashes", "SGLang's hashes of pages aren't the digests of chunks")

    def found(self, hashes: Sequence[str]) -> int:
        """How many of the pages are stored, from the first on. Waits for `lookup_timeout_s` at most."""
        namespace = self._namespace
        if namespace is None or not self.loads or not hashes:
            return 0
        hit = self._guard.run("lookup", None, self._find, namespace, hashes)
        return 0 if hit is None else hit.tokens // self.chunk_tokens

    def load(self, hashes: Sequence[str], slots: torch.Tensor) -> bool:
        """Have the KV of all these pages in the pool's rows `slots` [token]; False if it isn't there for some reason.

        Waits for `lookup_timeout_s` and `load_timeout_s` at most.
        """
        namespace = self._namespace
        return namespace is not None and self._guard.promised("load", self._load, namespace, hashes, slots)

    def _find(self, namespace: Namespace, hashes: Sequence[str]) -> Hit:
        return self._cache.lookup(namespace, (), extent=self._pool.extent, digests=digests_of(hashes))

    def _load(self, namespace: Namespace, hashes: Sequence[str], slots: torch.Tensor) -> None:
        hit, view = self._find(namespace, hashes), self._view(slots)
        if hit.tokens < view.tokens:
            raise LoadError(f"of {view.tokens} tokens that were stored {hit.tokens} are left")
        self._cache.load(hit, view, 0, view.tokens)

    def _view(self, slots: torch.Tensor) -> View:
        return self._pool.view(blocks_of(slots, self._pool.page, first=self.first_block), 0, len(slots))


def digests_of(hashes: Sequence[str]) -> list[bytes]:
    return [bytes.fromhex(one) for one in hashes]


def _chained_alike(page: int) -> bool:
    from sglang.srt.mem_cache.radix_cache import RadixKey
    from sglang.srt.mem_cache.utils import get_storage_hash_str

    tokens = array("q", [number * 1_000_003 % (1 << 31) for number in range(3 * page)])
    for extra_key, salt in _SALTS:
        key = RadixKey(tokens, extra_key, cache_salt=salt)
        theirs = get_storage_hash_str(key, page_size=page)
        theirs[1:] = get_storage_hash_str(key[page:], theirs[0], page_size=page)  # behind what SGLang has itself
        if theirs != [one.hex() for one in chain_digests(tokens, page, request_seed(extra_key, salt))]:
            return False
    return True
