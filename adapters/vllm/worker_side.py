"""The connector in vLLM's worker: copies between the store and the blocks of this process, as the scheduler's side
ordered, in the cache's own threads and beside the engine's steps."""

from collections.abc import Mapping, Sequence
from functools import partial
from math import ceil
from typing import Any

from kvlingua.adapters.vllm.cache_plan import windows_of
from kvlingua.adapters.vllm.groups import Groups, group_of_layers
from kvlingua.adapters.vllm.kernel_proof import check_kernel
from kvlingua.adapters.vllm.latent_proof import check_latents
from kvlingua.adapters.vllm.live_weights import LiveWeights
from kvlingua.adapters.vllm.metadata import LoadOrder, StepOrders, StepResult, StoreOrder
from kvlingua.adapters.vllm.transfers import Loads, Stores
from kvlingua.adapters.vllm.versions import axes_of
from kvlingua.adapters.vllm.views import MLA_LAYOUT, layout_name, ordered_layers, pool_of, static_scales
from kvlingua.common.cache import KVCache
from kvlingua.common.cpu_clock import ClockedThread
from kvlingua.common.errors import LoadError, UnsupportedError
from kvlingua.common.guard import Guard
from kvlingua.common.identity.lora import with_adapter
from kvlingua.common.identity.namespace import Namespace
from kvlingua.common.identity.ranks import Split
from kvlingua.layouts.geometry import Geometry
from kvlingua.layouts.view import Pool

IDLE_WAIT_S = 0.002  # for a load, in a step in which nothing is computed: vLLM would only ask again
UNSEEN = "mla", "vLLM's latent attention (MLA) couldn't be proved to be right"


class WorkerSide:
    """One worker's KV cache. Every method is called by the worker's thread and none of them raises."""

    def __init__(self, cache: KVCache, guard: Guard, geometry: Geometry, kv_cache_config: Any, page: int) -> None:
        self._cache = cache
        self._guard = guard
        self._geometry = geometry
        self._kv_cache_config = kv_cache_config
        self._page = page
        self._pool: Pool | Groups | None = None
        self._writes = True  # unless a lower rank holds the same heads
        self._layers: frozenset[str] = frozenset()
        self._computed: set[str] = set()  # layers whose attention this step's forward has passed
        self._forwards = 0  # steps whose forward has passed all layers
        self._off: tuple[str, str] | None = None
        self._latent: list[Any] = []  # its attention layers, where they are latent
        self.unproved: tuple[str, str] | None = None  # why what the model computes can't be trusted, once it is loaded
        self._failed: set[str] = set()
        self._loads = Loads(guard)
        self._stores = Stores()
        self._weights: LiveWeights | None = None
        self._looking: ClockedThread | None = None  # whether the weights are the same
        self._asked = 0  # number of the last reset for which it looked
        self._proved: list[int] = []
        self._changed = False

    def register(self, tensors: Mapping[str, Any], layers: Mapping[str, Any], rank: int, ranks: int) -> str:
        """Describe the tensors that vLLM has allocated; the name of their layout. layers: its attention layers by name.
        rank: of the tensor-parallel `ranks`.

        Raises UnsupportedError, LayoutError.
        """
        groups = self._kv_cache_config.kv_cache_groups
        names = [name for group in groups for name in group.layer_names]
        order = ordered_layers(names, tensors, self._geometry.layers)
        attention = [layers[name] for name in order]
        layout = layout_name(attention, axes_of(self._kv_cache_config))
        split = Split.of(self._geometry.kv_heads, self._geometry.layers, ranks)
        check_kernel(layout, attention[0], self._geometry, split.extent(rank, 0).heads, self._page)
        if layout == MLA_LAYOUT:
            self._latent, self.unproved = attention, UNSEEN
        blocks, windows = self._kv_cache_config.num_blocks, windows_of(groups)
        if windows == [None]:
            self._pool = pool_of(
                layout,
                [tensors[name] for name in order],
                self._geometry,
                split.extent(rank, 0),
                page=self._page,
                blocks=blocks,
                scales=static_scales(attention, self._geometry),
            )
        else:
            self._pool = Groups.of(
                layout,
                [tensors[name] for name in order],
                group_of_layers(order, groups),
                windows,
                self._geometry,
                page=self._page,
                blocks=blocks,
                chunk_tokens=self._cache.config.chunk_tokens,
            )
        self._writes = split.writes(rank)
        self._layers = frozenset(names)
        return layout

    def model_loaded(self, model: Any) -> None:
        """Prove of it what can't be known without it, and remember it as it is before anybody can change it."""
        if self._latent:
            self.unproved = self._guard.run("start", UNSEEN, self._prove, model)
        self._weights = self._guard.run("start", None, LiveWeights, model)

    def _prove(self, model: Any) -> tuple[str, str] | None:
        try:
            check_latents(model, self._latent)
        except UnsupportedError as error:
            return error.reason, str(error)
        return None

    def make_room(self, orders: StepOrders) -> None:
        """Blocks that vLLM has taken away are overwritten when this returns: nothing may read them any more."""
        self._stores.forget(orders.preempted)

    def begin(self, orders: StepOrders) -> None:
        """A step begins: so do its loads, beside its forward, whose blocks are others."""
        self._computed.clear()
        self._look(orders.unproved)
        for stored in orders.stores:
            self._stores.expect(stored.request_id)
        for order in orders.loads:
            self._loads.expect(order.request_id, self._filled_by(order))
            self._guard.promised("load", self._load, order)

    def computed(self, layer: str) -> None:
        """This step's forward has written the KV of a layer."""
        self._computed.add(layer)

    def store(self, orders: StepOrders) -> None:
        """Begin to copy what the step's forward has completed; vLLM keeps the blocks until that is over.

        Where a forward broke off, in this step or any before, blocks that vLLM counts as computed hold something else:
        nothing is stored from then on.
        """
        if self._pool is None:
            return
        self._forwards += self._computed >= self._layers
        if self._forwards != orders.forwards:
            self._stop("forward", "a forward of vLLM's failed, so that not all of its KV can be trusted; restart it")
        elif orders.namespace is not None and self._writes:
            for order in orders.stores:
                self._guard.run("store", None, self._store, order, orders.namespace)

    def weights_change(self, how: str) -> None:
        """Neither load nor store from here on; the scheduler's side is told with the next step's result."""
        self._stop("weights", f"vLLM's weights may have changed ({how}); restart it to share KV again")

    def over(self, finished: set[str]) -> tuple[set[str], set[str], set[str]]:
        """What is over since the last call: requests of which nothing is copied any more, of those that have ended
        (`finished`: in this step); requests whose load has ended, well or badly; and those for which it failed."""
        self._loads.cancel(finished)  # aborted
        if not self._computed:
            self._loads.wait(IDLE_WAIT_S)
        received, failed = self._loads.over(finished)
        self._failed |= failed
        return self._stores.over(finished), received, failed

    def broken_blocks(self) -> set[int]:
        """Those that were to be filled by the loads of which `over` has just said that they failed."""
        return self._loads.broken

    def result(self) -> StepResult | None:
        """What the scheduler's side must know of the last step; None if nothing."""
        if self._changed:
            self._stop(
                "weights", "vLLM's caches were reset, and its weights aren't those of before; restart it to share KV"
            )
        failed, self._failed = frozenset(self._failed), set()
        proved = tuple(self._proved)
        del self._proved[: len(proved)]  # not what the other thread adds meanwhile
        return StepResult(failed, self._off, proved) if failed or self._off or proved else None

    def stop_copies(self) -> None:
        """Nothing is copied out of vLLM's blocks any more when this returns; what wasn't begun isn't stored."""
        self._stores.stop_all()

    def finish(self) -> None:
        """The engine ends in good order: what was ordered is copied, if that takes no longer than a moment."""
        self._stores.wait()
        self.close()

    def close(self) -> None:
        """Nothing reads or writes the KV cache's memory any more."""
        self._pool = self._weights = None
        self._loads.cancel_all()
        self._stores.stop_all()

    def _look(self, reset: int) -> None:
        """Find out, beside the engine's work, whether the weights after this reset are those of before."""
        if self._pool is None or reset <= self._asked or (self._looking is not None and self._looking.is_alive()):
            return
        self._asked, weights = reset, self._weights
        if weights is None:
            self._stop("reset", "vLLM's caches were reset, as after a change of weights; restart it to share KV again")
            return

        self._looking = ClockedThread(partial(self._compare, weights, reset), "kvlingua-weights")
        self._looking.start()

    def _compare(self, weights: LiveWeights, reset: int) -> None:
        if self._guard.run("proof of the weights", False, weights.unchanged):
            self._proved.append(reset)
        else:
            self._changed = True

    def _stop(self, reason: str, message: str) -> None:
        self._off = self._off or (reason, message)
        self.close()

    def _filled_by(self, order: LoadOrder) -> Sequence[int]:
        """Blocks of the first group: who asks, vLLM 0.28, has one group here. Any, if the order couldn't be made."""
        if not order.blocks:
            return range(self._kv_cache_config.num_blocks)
        return order.blocks[0][order.start // self._page : ceil(order.stop / self._page)]

    def _load(self, order: LoadOrder) -> None:
        if self._pool is None or order.hit is None:
            raise LoadError(
                self._off[1] if self._off else "it was ordered without a stored prefix, or for an unknown KV cache"
            )
        if isinstance(self._pool, Groups):
            handle = self._pool.load(self._cache, order.hit, order.blocks, order.start, order.stop)
        else:
            into = self._pool.view(order.blocks[0], order.start, order.stop)
            handle = self._cache.submit_load(order.hit, into, order.start, order.stop)
        self._loads.begun(order.request_id, handle)

    def _store(self, order: StoreOrder, namespace: Namespace) -> None:
        if order.lora is not None:
            namespace = with_adapter(namespace, order.lora)
        if isinstance(self._pool, Groups):
            self._pool.store(self._cache, namespace, order.blocks, order.start, order.stop, order.digests)
        elif self._pool is not None:
            source = self._pool.view(order.blocks[0], order.start, order.stop)
            handle = self._cache.submit_store(namespace, (), source, order.start, order.stop, digests=order.digests)
            self._stores.add(order.request_id, handle)
