"""One scheduler process's connection to the store, whatever SGLang's way to it: on, or off for good."""

from __future__ import annotations

from typing import Any, ClassVar

from kvlingua.adapters.sglang.ranks import Ranks
from kvlingua.common.activation import Activation
from kvlingua.common.cache import KVCache
from kvlingua.common.guard import Guard
from kvlingua.common.identity.model import ModelDescription
from kvlingua.common.identity.namespace import Namespace
from kvlingua.layouts.view import Pool


class Connection:
    """`pool`: SGLang's live KV, in blocks of its page, with the heads that this rank has.

    There is no cache until the weights' digest is known, and none any more once `switch_off` was called. Raises
    IdentityError for a model that no key can name.
    """

    arguments: ClassVar[tuple[str, ...]] = ()
    """Those of SGLang's arguments that choose this way to the store."""

    @classmethod
    def check(cls, arguments: Any, page: int, chunk: int) -> None:
        """Raise UnsupportedError if something in SGLang's ServerArgs doesn't go with this way, or the tokens of a page
        with those of a chunk."""

    def __init__(
        self,
        cache: KVCache,
        description: ModelDescription,
        pool: Pool,
        guard: Guard,
        ranks: Ranks | None = None,
    ) -> None:
        self.ranks = Ranks() if ranks is None else ranks
        config = cache.config
        model = description.namespace(
            "not known yet", chunk_tokens=config.chunk_tokens, layers_per_shard=config.layers_per_shard
        )
        self.settings = f"{config.role} {pool.layout.name} {pool.page} {model.digest}"
        """What all ranks of an engine must have alike, so that they wait for each other at the same steps, and compute
        with one model, whose files may be others on another node."""
        self._cache = cache
        self._activation = Activation(cache, description, guard)
        self._pool = pool
        self._guard = guard
        self.loads = config.role != "producer"
        self._stores = config.role != "consumer"
        self._off = False

    def start(self) -> None:
        """Find out the namespace in a thread of its own: the weights are read once per machine, which takes a while."""
        self._activation.start(self._pool.layout.name, self._pool.page)

    def switch_off(self, reason: str, message: str) -> None:
        """No look-ups, loads and stores any more, until the engine is started anew. `reason`: a code for metrics.

        SGLang does on all ranks at the same step what leads to this.
        """
        self._off = True
        self._activation.off(reason, message)

    @property
    def chunk_tokens(self) -> int:
        return self._cache.config.chunk_tokens

    @property
    def off(self) -> bool:
        return self._off

    @property
    def _namespace(self) -> Namespace | None:
        return None if self._off else self._activation.namespace
