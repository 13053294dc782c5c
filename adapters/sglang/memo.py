"""What is remembered about one request as long as SGLang has it."""

from __future__ import annotations

import enum
from array import array
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import torch

from kvlingua.adapters.sglang.requests import pass_through
from kvlingua.common.cache import Hit, LoadHandle
from kvlingua.common.identity.chain import chain_digests, request_seed

MOST_LOADS = 3  # a load whose memory SGLang took back is begun anew; after that many the request is computed
MOST_STOOD = 3  # so often others overtake a request that lacks memory


class Stage(enum.Enum):
    """Where a request stands. All ranks of an engine have each request at the same stage."""

    NEW = enum.auto()
    ASKED = enum.auto()  # the store was asked and hasn't answered on all ranks: the request steps aside
    KNOWN = enum.auto()  # `tokens` of it are stored, and may be promised
    LOADING = enum.auto()  # they are being loaded: the request steps aside
    LOADED = enum.auto()  # they lie in memory that is held for it
    SETTLED = enum.auto()  # nothing (more) is promised


@dataclass
class Load:
    """A load of the tokens [start, stop) into SGLang's rows `slots` [token], which nobody else has meanwhile."""

    start: int
    stop: int
    slots: torch.Tensor
    handle: LoadHandle


@dataclass
class Memo:
    """One per request.

    reason: why the request passes through, or None. seed: what its salts put before the chain. asked: the token ids
    that were looked up. question: the lookup, until its answer was taken, which is `hit`. tokens: how many leading ones
    the store has for all ranks. load: while it is LOADING or LOADED. loads: how many were begun. begins: what is
    begun by another's load, while that is waited for. behind: loads of others whose memory it waits for; stood: how
    often it did. digests: of the chunks of what it is known to consist of. stored:
    leading tokens that need not be stored. adapter: SGLang's id of its LoRA adapter. lora: that one's digest, as far as
    this rank knows it. passes: it has none, which was counted.
    """

    reason: str | None
    seed: bytes
    adapter: str | None = None
    stage: Stage = Stage.NEW
    asked: array[int] = field(default_factory=lambda: array("q"))
    question: Future[Callable[[], Hit]] | None = None
    hit: Hit | None = None
    tokens: int = 0
    load: Load | None = None
    loads: int = 0
    begins: list[bytes] = field(default_factory=list)
    behind: list[Load] = field(default_factory=list)
    stood: int = 0
    digests: list[bytes] = field(default_factory=list)
    stored: int = 0
    lora: str | None = None
    passes: bool = False

    @classmethod
    def of(cls, request: Any) -> Memo:
        """For SGLang's Req, whose extra_key is the one the user gave, and its adapter's id, which is random."""
        reason, adapter, key = pass_through(request), request.lora_id, request.extra_key
        if adapter is not None:
            key = key.removesuffix(adapter) or None
        seed = b"" if reason else request_seed(key, request.cache_salt)
        return cls(reason, seed, adapter, Stage.NEW if reason is None else Stage.SETTLED)

    def chain(self, tokens: array[int], chunk: int) -> list[bytes]:
        """The digests of the whole chunks of `tokens`, with which the request's tokens begin."""
        wanted, known = len(tokens) // chunk, len(self.digests)
        if known < wanted:
            before = self.digests[-1] if known else self.seed
            self.digests += chain_digests(tokens[known * chunk : wanted * chunk], chunk, before)
        return self.digests[:wanted]
