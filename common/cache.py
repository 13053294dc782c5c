"""The one facade that every adapter uses."""

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future

from kvlingua.common import loading, log, storing
from kvlingua.common.config import Config
from kvlingua.common.errors import LayoutError, StoreError
from kvlingua.common.gate import Gate
from kvlingua.common.guard import capture
from kvlingua.common.hit import Hit, find
from kvlingua.common.identity.chain import chain_digests
from kvlingua.common.identity.namespace import Namespace
from kvlingua.common.load_handle import LoadHandle
from kvlingua.common.metrics import Counts, Stopwatch
from kvlingua.common.nearest import nearest
from kvlingua.common.running import EXIT_FLUSH_S, Running
from kvlingua.common.stores.store import open_store
from kvlingua.common.storing import StoreHandle
from kvlingua.layouts.casts import check_leave, conversions
from kvlingua.layouts.geometry import Extent
from kvlingua.layouts.view import View, check_view

__all__ = ["Hit", "KVCache", "LoadHandle", "StoreHandle"]


class KVCache:
    """Lookup, load and store. May be used from any thread; a forked child of the process starts afresh.

    Make one with `KVCache.open`. Threads start, and the store is opened, at first use. Used in a `with`, it is closed
    at the end.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self._description = open_store(config.url, config.max_bytes).describe()  # a wrong URL is told now
        self._scheme = config.url.partition(":")[0]
        self._running: dict[int, Running] = {}
        self._closed = False

    @classmethod
    def open(cls, config_or_url: Config | str | None = None) -> "KVCache":
        """A cache with this configuration, or the process's own with another store URL. Raises ConfigError."""
        if not isinstance(config_or_url, Config):
            config_or_url = Config.resolve(url=config_or_url)
        log.ensure_visible(config_or_url.log_level)
        return cls(config_or_url)

    @property
    def config(self) -> Config:
        return self._config

    @property
    def stats(self) -> dict[str, int]:
        """What this cache did in this process: lookups, hits, tokens_reused, tokens_stored, bytes_read, drops, ..."""
        running = self._running.get(os.getpid())
        return Counts(self._scheme).snapshot() if running is None else running.counts.snapshot()

    def describe(self) -> str:
        """The store, as a person would call it."""
        return self._description

    def lookup(
        self,
        namespace: Namespace,
        tokens: Sequence[int],
        *,
        seed: bytes = b"",
        extent: Extent | None = None,
        digests: Sequence[bytes] | None = None,
    ) -> Hit:
        """The longest stored run of whole chunks that `tokens` begin with. No side effects, cheap to repeat.

        seed: `request_seed` of the request. extent: which heads and layers are needed; all by default. digests:
        `chain_digests` of the tokens, if the caller has them. Never more than what can be loaded with `queue_bytes`
        of memory. Raises StoreTimeout after `lookup_timeout_s`, StoreError, IdentityError.
        """
        return self._lookup(namespace, tokens, seed, extent, digests, 0.0)

    def _lookup(
        self,
        namespace: Namespace,
        tokens: Sequence[int],
        seed: bytes,
        extent: Extent | None,
        digests: Sequence[bytes] | None,
        waited_s: float,
    ) -> Hit:
        """`lookup`, of whose time `waited_s` are over."""
        extent = namespace.grid.full if extent is None else extent
        if not namespace.grid.full.contains(extent):
            raise LayoutError(f"{extent} are not in a model of {namespace.grid.full}")
        if self._config.role == "producer":
            return Hit(namespace, extent, (), 0, ())
        if digests is None:
            digests = chain_digests(tokens, namespace.chunk_tokens, seed)
        running = self._in_this_process()
        chain = tuple(digests)
        with Stopwatch("lookup", self._scheme):
            covers = running.lookups.call(
                "lookup",
                lambda: find(running.store, namespace, chain, extent),
                self._config.lookup_timeout_s,
                waited_s,
            )
        covers = covers[: loading.fitting(running, namespace, covers)]
        running.counts.lookup(hit=bool(covers))
        return Hit(namespace, extent, chain[: len(covers)], len(covers) * namespace.chunk_tokens, covers)

    def submit_lookup(
        self,
        namespace: Namespace,
        tokens: Sequence[int],
        *,
        seed: bytes = b"",
        extent: Extent | None = None,
        digests: Sequence[bytes] | None = None,
    ) -> Future[Callable[[], Hit]]:
        """Like `lookup`, in a thread of the cache's. The result is a function that gives the hit, or raises what
        `lookup` raises. Known after `lookup_timeout_s`, the wait for those asked before included."""
        found: Future[Callable[[], Hit]] = Future()
        began = time.monotonic()

        def job() -> None:
            waited = time.monotonic() - began
            found.set_result(capture(lambda: self._lookup(namespace, tokens, seed, extent, digests, waited)))

        def given_up() -> None:
            found.set_result(capture(self._refuse_closed))

        if not self._in_this_process().asked.submit("lookup", job, given_up):
            given_up()
        return found

    def load(self, hit: Hit, into: View, start: int, stop: int, *, allow_lossy: bool = False) -> None:
        """Copy prompt positions [start, stop) of a hit to the view's tokens, which are as many. They may lie inside
        chunks.

        The view may hold the numbers in another order of rotated dims, and in another dtype or with other scales: a
        wider one, and only if the caller allows it (`allow_lossy`) one that can't hold them all exactly.
        Each object is verified before a byte of it is written. If this raises, some tokens may have been written, each
        with its own verified KV, and all must be taken as not loaded; once it has returned or raised, nothing is
        written any more. LoadError: an object is damaged (it is removed) or gone. StoreTimeout after `load_timeout_s`.
        StoreError, LayoutError.
        """
        self._counted(stop - start, self._loader(hit, into, start, stop, allow_lossy))(Gate())

    def submit_load(self, hit: Hit, into: View, start: int, stop: int, *, allow_lossy: bool = False) -> LoadHandle:
        """Like `load`, but in a thread of the cache's, one after the other in the order they were submitted.

        Each is over `load_timeout_s` after it was submitted. What `load` raises is in the handle, but for LayoutError
        and LoadError about the arguments, which are raised here.
        """
        return self._submit_load(self._counted(stop - start, self._loader(hit, into, start, stop, allow_lossy)))

    def submit_parts(self, hit: Hit, parts: Sequence[tuple[View, int, int, Callable[[], None]]]) -> LoadHandle:
        """Like `submit_load`, by way of memory of the caller's, which all its loads may share.

        parts: one after the other, each a view, the positions [start, stop) that are loaded into it, and what then
        copies them to where they are to be, in the same thread. Nothing is copied any more once the load is cancelled.
        """
        loads = [(self._loader(hit, into, start, stop, False), then) for into, start, stop, then in parts]

        def load(gate: Gate) -> int:
            nbytes = 0
            for one, copy in loads:
                gate.check()
                nbytes += one(Gate())
                with gate.writing():
                    copy()
            return nbytes

        return self._submit_load(self._counted(sum(stop - start for _, start, stop, _ in parts), load))

    def _submit_load(self, load: Callable[[Gate], None]) -> LoadHandle:
        handle, running = LoadHandle(load), self._in_this_process()
        running.handles.add(handle)
        if self._closed or not running.submitted.submit("load", handle.run, handle.cancel):
            handle.cancel()
        return handle

    def _counted(self, tokens: int, load: Callable[[Gate], int]) -> Callable[[Gate], None]:
        """What `load` reads counts as reused once all of it has arrived."""
        counts = self._in_this_process().counts
        return lambda gate: counts.loaded(tokens, load(gate))

    def _loader(self, hit: Hit, into: View, start: int, stop: int, allow_lossy: bool) -> Callable[[Gate], int]:
        """What loads it, with a gate for its writes, and says how many bytes were read."""
        check_view("target", into)
        check_leave(allow_lossy)
        pool = into.pool
        shared = [plane.name for plane in pool.geometry.planes if plane.per != "token" and plane.name not in pool.fixed]
        if shared:  # objects with other scales would meet in one block, some of them in a load of another time
            raise LayoutError(
                f"{', '.join(shared)} would be written for whole blocks, whatever their other tokens were scaled by: "
                "describe an engine's static scales with Layout.pool(scales=...)"
            )
        loading.check(hit, into, start, stop, allow_lossy)
        running, began = self._in_this_process(), time.monotonic()

        def load(gate: Gate) -> int:
            with Stopwatch("load", self._scheme):
                return loading.load(running, hit, into, start, stop, allow_lossy, gate, began)

        return load

    def store(
        self,
        namespace: Namespace,
        tokens: Sequence[int],
        source: View,
        start: int,
        stop: int,
        *,
        seed: bytes = b"",
        extent: Extent | None = None,
        digests: Sequence[bytes] | None = None,
    ) -> StoreHandle:
        """Store the whole chunks within prompt positions [start, stop) that the store doesn't have.

        tokens: the prompt from position 0 on. source: as many tokens as [start, stop), copied before this returns. It
        may hold them in another order of rotated dims, or in a dtype of which the namespace's holds every value: what
        is stored is exact. extent: what is stored, the source's by default. What can't be queued is dropped and
        counted, and a store in trouble only shows in the handle. Raises LayoutError, IdentityError, and
        UnsupportedError for an extent that is no union of shards.
        """
        handle = StoreHandle()
        _, copy = self._copier(handle, namespace, tokens, source, start, stop, seed, extent, digests)
        copy()
        return handle

    def submit_store(
        self,
        namespace: Namespace,
        tokens: Sequence[int],
        source: View,
        start: int,
        stop: int,
        *,
        seed: bytes = b"",
        extent: Extent | None = None,
        digests: Sequence[bytes] | None = None,
    ) -> StoreHandle:
        """Like `store`, but the store is asked, and the source copied, by a thread of the cache's.

        The source must not change until `copied` is set, which `StoreHandle.cancel` hastens.
        """
        handle = StoreHandle()
        chunks, copy = self._copier(handle, namespace, tokens, source, start, stop, seed, extent, digests)
        if not chunks:
            return handle.finish()
        storing.submit(self._in_this_process(), handle, chunks, copy)
        return handle

    def give_up(self, chunks: int) -> None:
        """Count chunks that a caller would have stored, had the store been faster."""
        self._in_this_process().counts.dropped("queue_full", chunks)

    def _copier(
        self,
        handle: StoreHandle,
        namespace: Namespace,
        tokens: Sequence[int],
        source: View,
        start: int,
        stop: int,
        seed: bytes,
        extent: Extent | None,
        digests: Sequence[bytes] | None,
    ) -> tuple[int, Callable[[], object]]:
        """How many chunks are to be stored at most, and what copies and queues them."""
        check_view("source", source)
        if source.tokens != stop - start or start < 0:
            raise LayoutError(f"positions [{start}, {stop}) don't fit a view of {source.tokens} tokens")
        conversions(source.pool.geometry, namespace.geometry, frozenset(), allow_lossy=False)
        extent = source.pool.extent if extent is None else extent
        if not source.pool.extent.contains(extent):
            raise LayoutError(f"the view holds {source.pool.extent}, {extent} should be stored")
        if self._config.role == "consumer":
            return 0, handle.finish
        running = self._in_this_process()
        container = running.container(namespace, extent)
        if digests is None:
            digests = chain_digests(tokens, namespace.chunk_tokens, seed)
        chain = tuple(digests)
        chunks = range(-(-start // namespace.chunk_tokens), min(stop // namespace.chunk_tokens, len(chain)))

        def copy() -> None:
            with Stopwatch("store", self._scheme):
                storing.store(running, container, chain, source, start, chunks, handle)

        return len(chunks), copy

    def nearest(self, namespace: Namespace) -> tuple[Namespace, list[str]] | None:
        """The stored namespace most like `namespace` but not equal to it, and the fields that differ; None if there
        is none.

        Raises StoreTimeout after `load_timeout_s`, StoreError.
        """
        running = self._in_this_process()
        return running.loads.call("scan", lambda: nearest(running.store, namespace), self._config.load_timeout_s)

    def flush(self, timeout: float) -> bool:
        """Wait until what was stored is visible to others; False if it isn't after `timeout` seconds."""
        running = self._running.get(os.getpid())
        return running is None or running.flush(timeout)

    def close(self, timeout: float = EXIT_FLUSH_S) -> bool:
        """Write what is queued, for at most `timeout` seconds, and stop. False if something was given up."""
        self._closed = True
        running = self._running.get(os.getpid())
        return running is None or running.close(timeout)

    def __enter__(self) -> "KVCache":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _refuse_closed(self) -> Hit:
        raise StoreError("the cache is closed, or too many lookups wait")

    def _in_this_process(self) -> Running:
        if self._closed:
            raise StoreError("the cache is closed")
        pid = os.getpid()
        running = self._running.get(pid)
        if running is None:
            made = Running(self._config)
            running = self._running.setdefault(pid, made)  # two threads at once: one of theirs is used
            if running is made:
                for other in self._running.keys() - {pid}:  # a forked child has its parent's, too
                    self._running.pop(other).leave()
                running.start()
        return running
