"""What the two sides of the connector say to each other. vLLM carries it between processes; all of it is plain data."""

from dataclasses import dataclass, field

from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorHandshakeMetadata,
    KVConnectorMetadata,
    KVConnectorWorkerMetadata,
)

from kvlingua.adapters.vllm.block_tables import Tables
from kvlingua.common.cache import Hit
from kvlingua.common.identity.namespace import Namespace


@dataclass(frozen=True)
class LoadOrder:
    """Copy prompt positions [start, stop) of `hit` into the request's blocks. `blocks`: its whole block table, one for
    each KV cache group.

    `hit` is None if the order could not be made after it was promised: nothing to load, report it as failed.
    """

    request_id: str
    hit: Hit | None
    blocks: Tables
    start: int
    stop: int


@dataclass(frozen=True)
class StoreOrder:
    """Store the whole chunks of positions [start, stop), prompt and answer, which this step's forward has completed."""

    request_id: str
    digests: tuple[bytes, ...]  # of all chunks up to `stop`, 32 bytes each
    blocks: Tables
    start: int
    stop: int
    lora: str | None = None  # digest of the adapter it was computed with


@dataclass(frozen=True)
class StepOrders(KVConnectorMetadata):
    """Scheduler to worker, one per engine step. `namespace`: of the stores, sent only where there are any.

    forwards: how many steps so far had a forward, this one included. preempted: ids of requests whose blocks vLLM has
    taken away, to be overwritten from this step on. unproved: the number of a reset of vLLM's caches, after which the
    worker is to look whether its weights are as before; 0: none.
    """

    loads: tuple[LoadOrder, ...] = ()
    stores: tuple[StoreOrder, ...] = ()
    namespace: Namespace | None = None
    forwards: int = 0
    preempted: frozenset[str] = frozenset()
    unproved: int = 0


@dataclass(frozen=True)
class WorkerReady(KVConnectorHandshakeMetadata):
    """Worker to scheduler, once, when its KV cache is allocated: the layout's name, or why it can't be used (a code and
    a sentence)."""

    layout: str | None
    why_not: tuple[str, str] = ("layout", "vLLM registered no KV cache")


@dataclass(frozen=True)
class StepResult(KVConnectorWorkerMetadata):
    """Worker to scheduler, after a step in which something happened that the scheduler must know."""

    failed: frozenset[str] = field(default_factory=frozenset)  # ids of requests whose load failed
    off: tuple[str, str] | None = None  # why the worker stopped for good: a code and a sentence
    proved: tuple[int, ...] = ()  # numbers of resets after which a worker's weights were as before

    def aggregate(self, other: "KVConnectorWorkerMetadata") -> "StepResult":
        assert isinstance(other, StepResult)
        return StepResult(self.failed | other.failed, self.off or other.off, self.proved + other.proved)
