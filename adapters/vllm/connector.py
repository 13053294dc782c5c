"""The class that vLLM makes twice per engine, in its scheduler and in its worker. It only hands calls on."""

import time
from collections.abc import Callable
from typing import Any
from weakref import WeakValueDictionary

import vllm
from vllm.config import get_layers_from_vllm_config
from vllm.distributed.kv_transfer import get_kv_transfer_group, has_kv_transfer_group
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorRole,
    SupportsHMA,
)
from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase
from vllm.model_executor.model_loader.utils import get_model_cls

from kvlingua.adapters.vllm import live_weights, stats, weights
from kvlingua.adapters.vllm.block_tables import BlockTables
from kvlingua.adapters.vllm.identity import check_model_class, describe
from kvlingua.adapters.vllm.lora import Adapters
from kvlingua.adapters.vllm.metadata import StepOrders, StepResult, WorkerReady
from kvlingua.adapters.vllm.process_cache import acquire, release
from kvlingua.adapters.vllm.scheduler_side import SchedulerSide
from kvlingua.adapters.vllm.switch import Switch
from kvlingua.adapters.vllm.versions import says_blocks
from kvlingua.adapters.vllm.worker_side import WorkerSide
from kvlingua.common import log
from kvlingua.common.activation import Activation, say_off
from kvlingua.common.cache import KVCache
from kvlingua.common.config import Config
from kvlingua.common.cpu_clock import clock_methods
from kvlingua.common.errors import KVLinguaError, UnsupportedError
from kvlingua.common.guard import Guard, reason_of

FLUSH_SECONDS = 3.0  # vLLM kills a worker that takes longer to end
NO_ORDERS = StepOrders()
_workers: WeakValueDictionary[str, WorkerSide] = WeakValueDictionary()  # those in this process, by their engine
UNEXPECTED = "start", "an unexpected error at start, see the line before"


@clock_methods
class KVLinguaConnector(KVConnectorBase_V1, SupportsHMA):
    """Where the engine's KV can't be proved to be understood it does nothing, and the engine runs as without it.

    SupportsHMA lets hybrid models keep their several KV cache groups, which they would lose with another connector.
    A configuration that can't be right (ConfigError) is the one thing that ends the engine's start.
    """

    def __init__(self, vllm_config: Any, role: KVConnectorRole, kv_cache_config: Any) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        transfer = vllm_config.kv_transfer_config
        config = Config.resolve(**{"role": transfer.kv_role.removeprefix("kv_"), **transfer.kv_connector_extra_config})
        log.ensure_visible(config.log_level)
        self._guard = Guard("vllm")
        self._cache: KVCache | None = None
        self._switch: Switch | None = None
        self._scheduler: SchedulerSide | None = None
        self._worker: WorkerSide | None = None
        self._ready = WorkerReady(None)
        why_not = self._guard.run("start", UNEXPECTED, self._start, config, role)
        if why_not is not None:
            self._scheduler = self._switch = self._worker = None
            self._ready = WorkerReady(None, why_not)
            if role == KVConnectorRole.SCHEDULER:
                say_off("vllm", *why_not, metrics_dir=config.metrics_dir)

    def _start(self, config: Config, role: KVConnectorRole) -> tuple[str, str] | None:
        """Take part, or return why not: a code and a sentence."""
        try:
            self._open(config, role)
        except KVLinguaError as error:
            return reason_of(error), str(error)
        return None

    def _open(self, config: Config, role: KVConnectorRole) -> None:
        description = describe(self._vllm_config, self._kv_cache_config, vllm.__version__, config.layers_per_shard)
        page = self._vllm_config.cache_config.block_size
        self._cache = acquire(config)
        if role == KVConnectorRole.WORKER:
            self._worker = WorkerSide(self._cache, self._guard, description.geometry, self._kv_cache_config, page)
            if self._vllm_config.parallel_config.tensor_parallel_size == 1:
                _workers[self._vllm_config.kv_transfer_config.engine_id] = self._worker
            weights.watch(self._worker)
            live_weights.await_model(self._worker)
            return
        switch = Switch(Activation(self._cache, description, self._guard), page)
        adapters = Adapters(self._vllm_config)
        tables = None if says_blocks(vllm.__version__) else BlockTables()
        self._scheduler = SchedulerSide(self._cache, switch, self._guard, page, adapters, tables)
        self._switch = switch
        # Read by vLLM after this constructor. Its default, to fail the request, would make a lost object visible to
        # users.
        self._vllm_config.kv_transfer_config.kv_load_failure_policy = "recompute"
        log.logger.info("vllm: kv_load_failure_policy is set to recompute: what can't be loaded is computed")

    @property
    def requires_kv_delivery(self) -> bool:
        """A chunk that isn't stored is a later miss, nothing worse: no request has to be computed again for it."""
        return False

    # Scheduler

    def bind_kv_cache_manager(self, kv_cache_manager: Any) -> None:
        super().bind_kv_cache_manager(kv_cache_manager)

        def let_go() -> None:
            self._guard.run("reset", None, self._let_go, kv_cache_manager)

        self._watch(kv_cache_manager.block_pool, kv_cache_manager, let_go)

    def bind_gpu_block_pool(self, gpu_block_pool: Any) -> None:
        """All that vLLM 0.28 gives."""
        super().bind_gpu_block_pool(gpu_block_pool)
        if not says_blocks(vllm.__version__):
            self._watch(gpu_block_pool, gpu_block_pool, lambda: None)

    def _watch(self, pool: Any, resettable: Any, let_go: Callable[[], object]) -> None:
        switch = self._switch
        if switch is not None and not self._guard.run("start", False, switch.watch, pool, resettable, let_go):
            switch.off("reset_unwatched", "a reset of vLLM's prefix cache would go unnoticed")

    def _let_go(self, kv_cache_manager: Any) -> None:
        """vLLM refuses a reset while blocks are in use. Those that are kept for copies can be given up at once where
        the one worker is in this process."""
        worker = _workers.get(self._vllm_config.kv_transfer_config.engine_id)
        if worker is not None and self._scheduler is not None:
            worker.stop_copies()
            self._scheduler.free_held(kv_cache_manager)

    def set_xfer_handshake_metadata(self, metadata: dict[int, Any]) -> None:
        """What each worker's `get_handshake_metadata` gave, by rank."""
        switch = self._switch
        if switch is None:
            return
        ranks = [metadata.get(rank) for rank in range(self._vllm_config.parallel_config.tensor_parallel_size)]
        if not self._guard.run("start", False, switch.workers_ready, ranks):
            switch.off(*UNEXPECTED)

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int | None, bool]:
        """None: the store hasn't answered yet."""
        tokens = self._scheduler.matched(request, num_computed_tokens) if self._scheduler else 0
        return tokens, bool(tokens)

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        if self._scheduler is not None:
            self._scheduler.allocated(request, blocks, num_external_tokens)

    def build_connector_meta(self, scheduler_output: Any) -> StepOrders:
        return self._scheduler.orders(scheduler_output) if self._scheduler else NO_ORDERS

    def update_connector_output(self, connector_output: Any) -> None:
        result = connector_output.kv_connector_worker_meta
        if self._scheduler is not None:
            self._scheduler.copied(connector_output.finished_sending or ())
            if isinstance(result, StepResult):
                self._scheduler.result(result)

    def request_finished(self, request: Any, block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:
        copying = self._scheduler is not None and self._scheduler.finished(request.request_id)
        return copying, None

    def request_finished_all_groups(
        self, request: Any, block_ids: tuple[list[int], ...]
    ) -> tuple[bool, dict[str, Any] | None]:
        return self.request_finished(request, [])

    def reset_cache(self) -> bool | None:
        """Asked for when the weights were changed, among others; what is stored stays right for the weights it was
        computed with."""
        if self._switch is not None:
            self._switch.reset()
        return True

    # Worker

    def register_kv_caches(self, kv_caches: dict[str, Any]) -> None:
        if self._worker is not None:
            self._ready = self._guard.run("start", WorkerReady(None, UNEXPECTED), self._register, kv_caches)

    def _register(self, kv_caches: dict[str, Any]) -> WorkerReady:
        assert self._worker is not None
        try:
            if has_kv_transfer_group() and get_kv_transfer_group() is not self:
                raise UnsupportedError("connector", "within another connector it was never run: name KVLingua itself")
            check_model_class(get_model_cls(self._vllm_config.model_config))
            layers = get_layers_from_vllm_config(self._vllm_config, AttentionLayerBase)
            parallel = self._vllm_config.parallel_config  # of this worker; tensor parallelism is the only one there is
            return WorkerReady(self._worker.register(kv_caches, layers, parallel.rank, parallel.tensor_parallel_size))
        except KVLinguaError as error:
            return WorkerReady(None, (reason_of(error), str(error)))

    def get_handshake_metadata(self) -> WorkerReady:
        """Handed over also if this side refuses: the other one says so. Asked for once the model is loaded and run."""
        why_not = self._worker.unproved if self._worker is not None else None
        return self._ready if why_not is None else WorkerReady(None, why_not)

    def handle_preemptions(self, kv_connector_metadata: Any) -> None:
        """Called in every step, before anything is written."""
        if self._worker is not None:
            self._worker.make_room(kv_connector_metadata)

    def bind_connector_metadata(self, connector_metadata: Any) -> None:
        super().bind_connector_metadata(connector_metadata)
        if self._worker is not None:
            self._worker.begin(connector_metadata)

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        """Loads are begun when a step is: vLLM calls this behind the forward, which they needn't wait for."""

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Loads are over before the requests they are for run."""

    def save_kv_layer(self, layer_name: str, kv_layer: Any, attn_metadata: Any, **kwargs: Any) -> None:
        """All layers are stored at once after the forward, if it has computed them all."""
        if self._worker is not None:
            self._worker.computed(layer_name)

    def wait_for_save(self) -> None:
        """Called after a forward that raised, too."""
        if self._worker is not None:
            self._worker.store(self._get_connector_metadata())

    def get_transfer_results(self, finished_req_ids: set[str]) -> Any:
        """What is over: copies out of blocks of requests that have ended, loads; what failed is computed by vLLM."""
        # Here, because 0.28 doesn't have it.
        from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorTransferResults

        sent, received, failed = self._worker.over(finished_req_ids) if self._worker else (set(), set(), set())
        return KVConnectorTransferResults(finished_sending=sent, finished_recving=received, failed_recving=failed)

    def get_finished(self, finished_req_ids: set[str]) -> tuple[set[str], set[str]]:
        """The same for vLLM 0.28, which then asks for the blocks of failed loads."""
        sent, received, _ = self._worker.over(finished_req_ids) if self._worker else (set(), set(), set())
        return sent, received

    def get_block_ids_with_load_errors(self) -> set[int]:
        """Empty for vLLM from 0.30 on, which knows the requests."""
        return self._worker.broken_blocks() if self._worker and not says_blocks(vllm.__version__) else set()

    def build_connector_worker_meta(self) -> StepResult | None:
        return self._worker.result() if self._worker else None

    # Both

    @classmethod
    def build_kv_connector_stats(cls, data: dict[str, Any] | None = None) -> stats.CacheStats:
        return stats.CacheStats(dict(data or {}))

    @classmethod
    def build_prom_metrics(
        cls,
        vllm_config: Any,
        metric_types: dict[Any, Any],
        labelnames: list[str],
        per_engine_labelvalues: dict[int, list[object]],
    ) -> stats.CacheMetrics:
        return stats.CacheMetrics(vllm_config, metric_types, labelnames, per_engine_labelvalues)

    def get_kv_connector_stats(self) -> stats.CacheStats | None:
        """Asked for on both sides after every step."""
        return stats.news(self._cache) if self._cache is not None else None

    def shutdown(self) -> None:
        """What was just stored becomes visible, if that takes no longer than a few seconds."""
        until = time.monotonic() + FLUSH_SECONDS
        if self._worker is not None:
            weights.unwatch(self._worker)
            self._guard.run("close", None, self._worker.finish)
            self._worker = None  # it holds the KV cache's memory
        if self._cache is not None:
            cache, self._cache = self._cache, None
            self._guard.run("close", False, release, cache, max(0.0, until - time.monotonic()))
