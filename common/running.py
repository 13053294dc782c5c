"""What one cache holds in one process: its store, its threads, its memory. A forked child gets its own."""

import atexit
import os
import threading
import time
from weakref import WeakSet

from kvlingua.common import bulk
from kvlingua.common.config import Config
from kvlingua.common.container import Container
from kvlingua.common.deadline import DeadlineWorker
from kvlingua.common.identity.namespace import Namespace
from kvlingua.common.job_queue import JobQueue
from kvlingua.common.load_handle import LoadHandle
from kvlingua.common.metrics import Counts, MetricsFile
from kvlingua.common.scratch import ScratchPool
from kvlingua.common.stores.store import Files, open_store
from kvlingua.layouts.geometry import Extent

EXIT_FLUSH_S = 3.0  # how long a process that ends waits for what it still has to write
_CONTAINERS = 64
_END_S = 1.0  # how long a thread may take to end


class Running:
    """Starts no thread and opens no file before they are needed."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.counts = Counts(config.url.partition(":")[0])
        self.pid = os.getpid()
        self.store = open_store(config.url, config.max_bytes)
        stuck: dict[str, str] = {}
        self.lookups = DeadlineWorker("kvlingua-lookup", stuck)  # short calls, never behind a long one
        self.loads = DeadlineWorker("kvlingua-load", stuck)
        self.queue = JobQueue("kvlingua-write")
        self.copies = JobQueue("kvlingua-copy")
        self.asked = JobQueue("kvlingua-asked")  # lookups that nobody waits for
        self.submitted = JobQueue("kvlingua-submitted")  # loads, likewise
        self.handles: WeakSet[LoadHandle] = WeakSet()  # of those loads
        self.load_memory = ScratchPool(config.queue_bytes)
        self.store_memory = ScratchPool(config.queue_bytes)
        self.load_lock = threading.Lock()  # one load at a time fills the memory there is
        self.pending: set[str] = set()  # keys of objects that wait to be written
        self.pending_lock = threading.Lock()
        self._containers: dict[tuple[str, Extent], Container] = {}
        self._metrics = MetricsFile(config.metrics_dir) if config.metrics_dir is not None else None

    def start(self) -> None:
        """This one is used: make sure that what it has queued is written when the process ends."""
        atexit.register(self.close, EXIT_FLUSH_S)

    def leave(self) -> None:
        """This process is a fork of the one that made this: let its memory go, and leave the rest to that one."""
        atexit.unregister(self.close)

    @property
    def files(self) -> Files | None:
        """How objects go between files and engines in one native call; None: through `store` and Python."""
        return self.store.files if bulk.available() else None

    def container(self, namespace: Namespace, extent: Extent) -> Container:
        """The objects of a namespace and extent; their headers are prepared once."""
        key = namespace.digest, extent
        found = self._containers.get(key)
        if found is None:
            if len(self._containers) >= _CONTAINERS:
                self._containers.clear()
            found = self._containers[key] = Container(namespace, extent)
        return found

    def flush(self, timeout: float) -> bool:
        """Wait until all that was stored is written; False if it isn't after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        return self.copies.flush(timeout) and self.queue.flush(max(0.0, deadline - time.monotonic()))

    def close(self, timeout: float) -> bool:
        """Write what is queued, for at most `timeout` seconds, then let go of everything. True if all was written."""
        if os.getpid() != self.pid:  # registered by the parent of a forked child
            return True
        atexit.unregister(self.close)
        deadline = time.monotonic() + timeout
        for handle in list(self.handles):
            handle.cancel()
        self.asked.close(_END_S)
        self.submitted.close(_END_S)
        copied = self.copies.close(timeout)
        done = self.queue.close(max(0.0, deadline - time.monotonic())) and copied
        self.lookups.close(_END_S)
        self.loads.close(_END_S)
        if done and not self.loads.hanging:  # otherwise a stuck call still uses the store
            self.store.close()
        if self._metrics is not None:
            self._metrics.close(1.0)
        return done
