"""The connector in vLLM's worker: copies between the store and the blocks of this process, as the scheduler's side
ordered."""

from collections.abc import Mapping
from typing import Any

from kvlingua.adapters.vllm.metadata import LoadOrder, StepOrders, StepResult, StoreOrder
from kvlingua.adapters.vllm.views import layout_name, ordered_layers, pool_of
from kvlingua.common.cache import KVCache
from kvlingua.common.errors import LoadError
from kvlingua.common.guard import Guard
from kvlingua.common.identity.namespace import Namespace
from kvlingua.layouts.geometry import Geometry
from kvlingua.layouts.view import Pool


class WorkerSide:
    """One worker's KV cache. Every method is called by the worker's thread and none of them raises."""

    def __init__(self, cache: KVCache, guard: Guard, geometry: Geometry, kv_cache_config: Any, page: int) -> None:
        self._cache = cache
        self._guard = guard
        self._geometry = geometry
        self._kv_cache_config = kv_cache_config
        self._page = page
        self._pool: Pool | None = None
        self._layers: frozenset[str] = frozenset()
        self._computed: set[str] = set()  # layers whose attention this step's forward has passed
        self._forwards = 0  # steps whose forward has passed all layers
        self._off: tuple[str, str] | None = None
        self._failed: set[str] = set()
        self._received: set[str] = set()

    def register(self, tensors: Mapping[str, Any], layers: Mapping[str, Any]) -> str:
        """Describe the tensors that vLLM has allocated; the name of their layout. layers: its attention layers by name.

        Raises UnsupportedError, LayoutError.
        """
        (group,) = self._kv_cache_config.kv_cache_groups
        order = ordered_layers(group.layer_names, tensors, self._geometry.layers)
        layout = layout_name([layers[name] for name in order], self._kv_cache_config.kv_cache_layout)
        self._pool = pool_of(
            layout,
            [tensors[name] for name in order],
            self._geometry,
            page=self._page,
            blocks=self._kv_cache_config.num_blocks,
        )
        self._layers = frozenset(group.layer_names)
        return layout

    def begin(self) -> None:
        """A step begins."""
        self._computed.clear()

    def computed(self, layer: str) -> None:
        """This step's forward has written the KV of a layer."""
        self._computed.add(layer)

    def load(self, orders: StepOrders) -> None:
        """Do the loads. What fails is reported, so that vLLM computes it."""
        for order in orders.loads:
            self._received.add(order.request_id)
            if not self._guard.promised("load", self._load, order):
                self._failed.add(order.request_id)

    def store(self, orders: StepOrders) -> None:
        """Copy what the step's forward has completed and queue it for the store; a block may change after this.

        Where a forward broke off, in this step or any before, blocks that vLLM counts as computed hold something else:
        nothing is stored from then on.
        """
        if self._pool is None:
            return
        self._forwards += self._computed >= self._layers
        if self._forwards != orders.forwards:
            self._stop("forward", "a forward of vLLM's failed, so that not all of its KV can be trusted; restart it")
        elif orders.namespace is not None:
            for order in orders.stores:
                self._guard.run("store", None, self._store, order, orders.namespace)

    def weights_change(self, how: str) -> None:
        """Neither load nor store from here on; the scheduler's side is told with the next step's result."""
        self._stop("weights", f"vLLM's weights may have changed ({how}); restart it to share KV again")

    def received(self) -> tuple[set[str], set[str]]:
        """Requests whose load is over, well or badly, since the last call; and those for which it failed."""
        received, self._received = self._received, set()
        return received, received & self._failed

    def result(self) -> StepResult | None:
        """What the scheduler's side must know of the last step; None if nothing."""
        failed, self._failed = frozenset(self._failed), set()
        return StepResult(failed, self._off) if failed or self._off else None

    def _stop(self, reason: str, message: str) -> None:
        self._off = self._off or (reason, message)
        self._pool = None

    def _load(self, order: LoadOrder) -> None:
        if self._pool is None or order.hit is None:
            raise LoadError(
                self._off[1] if self._off else "it was ordered without a stored prefix, or for an unknown KV cache"
            )
        into = self._pool.view(order.blocks, order.start, order.stop)
        self._cache.load(order.hit, into, order.start, order.stop)

    def _store(self, order: StoreOrder, namespace: Namespace) -> None:
        if self._pool is not None:
            source = self._pool.view(order.blocks, order.start, order.stop)
            self._cache.store(namespace, (), source, order.start, order.stop, digests=order.digests)
