"""A store that doesn't answer for a while."""

import threading
from collections.abc import Sequence

from kvlingua.common.cache import KVCache
from kvlingua.common.stores.store import Read


def stuck(cache: KVCache) -> tuple[threading.Event, threading.Event]:
    """Reads of this cache begin (the first event) and don't go on until the second is set."""
    began, release = threading.Event(), threading.Event()
    store = cache._in_this_process().store
    read = store.get_many

    def slow(reads: Sequence[Read]) -> list[int | None]:
        began.set()
        release.wait(30)
        return read(reads)

    store.get_many = slow  # type: ignore[method-assign]
    return began, release
