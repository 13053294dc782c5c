"""What is remembered about one request as long as SGLang has it."""

from __future__ import annotations

import time
from array import array
from dataclasses import dataclass, field
from typing import Any

from kvlingua.adapters.sglang.requests import pass_through
from kvlingua.common.cache import Hit
from kvlingua.common.identity.chain import chain_digests, request_seed

ASK_AGAIN_S = 1.0  # SGLang matches each waiting request at every step; the store is asked for more at most this often


@dataclass
class Memo:
    """One per request.

    reason: why the request passes through, or None. seed: what its salts put before the chain. prompt, digests: its
    token ids and the chain of their chunks. hit: what the store had of them at `asked_at`. refused: ends of promises
    that were not kept, not to be made again. stored: leading tokens that the store has.
    """

    reason: str | None
    seed: bytes
    prompt: array[int] = field(default_factory=lambda: array("q"))
    digests: list[bytes] = field(default_factory=list)
    hit: Hit | None = None
    asked_at: float = float("-inf")
    refused: set[int] = field(default_factory=set)
    stored: int = 0

    @classmethod
    def of(cls, request: Any) -> Memo:
        """For SGLang's Req. Without LoRA, which is refused at start, its extra_key is the one the user gave."""
        reason = pass_through(request)
        return cls(reason, b"" if reason else request_seed(request.extra_key, request.cache_salt))

    def chain(self, prompt: array[int], chunk_tokens: int) -> list[bytes]:
        """The digests of the request's prompt, computed again only if SGLang gave it another one."""
        if prompt != self.prompt:
            self.digests = chain_digests(prompt, chunk_tokens, self.seed)
            self.prompt, self.hit, self.asked_at = prompt[:], None, float("-inf")
        return self.digests

    @property
    def must_ask(self) -> bool:
        """Whether to ask the store: it never was asked, or some time ago and didn't have everything."""
        if self.hit is not None and self.hit.tokens >= len(self.digests) * self.hit.namespace.chunk_tokens:
            return False
        return time.monotonic() - self.asked_at >= ASK_AGAIN_S

    def answered(self, hit: Hit | None) -> None:
        """The store was asked now."""
        self.hit, self.asked_at = hit, time.monotonic()

    def refuse(self, stop: int) -> None:
        """The promise of the first `stop` tokens wasn't kept."""
        self.refused.add(stop)
        self.answered(None)
