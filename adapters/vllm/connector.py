"""The class that vLLM makes twice per engine, in its scheduler and in its worker. It only hands calls on."""

from typing import Any

import vllm
from vllm.config import get_layers_from_vllm_config
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorBase_V1, KVConnectorRole, SupportsHMA
from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase

from kvlingua.adapters.vllm import weights
from kvlingua.adapters.vllm.identity import describe
from kvlingua.adapters.vllm.metadata import StepOrders, StepResult, WorkerReady
from kvlingua.adapters.vllm.process_cache import acquire, release
from kvlingua.adapters.vllm.scheduler_side import SchedulerSide
from kvlingua.adapters.vllm.switch import Switch, say_off
from kvlingua.adapters.vllm.worker_side import WorkerSide
from kvlingua.common import log
from kvlingua.common.cache import KVCache
from kvlingua.common.config import Config
from kvlingua.common.errors import UnsupportedError
from kvlingua.common.guard import Guard
from kvlingua.common.metrics import MetricsFile

FLUSH_SECONDS = 3.0  # vLLM kills a worker that takes longer to end
NO_ORDERS = StepOrders()


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
        self._guard.run("start", None, self._open, config, role)

    def _open(self, config: Config, role: KVConnectorRole) -> None:
        try:
            description = describe(self._vllm_config, self._kv_cache_config, vllm.__version__)
        except UnsupportedError as error:
            if role == KVConnectorRole.SCHEDULER:
                if config.metrics_dir is not None:
                    MetricsFile(config.metrics_dir)  # which a cache would have: this one counts what follows
                say_off(error.reason, str(error))
            return
        page = self._vllm_config.cache_config.block_size
        self._cache = acquire(config)
        if role == KVConnectorRole.WORKER:
            self._worker = WorkerSide(self._cache, self._guard, description.geometry, self._kv_cache_config, page)
            weights.watch(self._worker)
            return
        self._switch = Switch(self._cache, description, page, self._guard)
        self._scheduler = SchedulerSide(self._cache, self._switch, self._guard, page)
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
        if self._switch is not None:
            self._switch.watch(kv_cache_manager.block_pool)

    def set_xfer_handshake_metadata(self, metadata: dict[int, Any]) -> None:
        ready = metadata.get(0)
        if self._switch is not None and isinstance(ready, WorkerReady):
            self._switch.worker_ready(ready)

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int | None, bool]:
        tokens = self._scheduler.matched(request, num_computed_tokens) if self._scheduler else 0
        return tokens, tokens > 0

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        if self._scheduler is not None and num_external_tokens > 0:
            self._scheduler.allocated(request, blocks.get_block_ids()[0], num_external_tokens)

    def build_connector_meta(self, scheduler_output: Any) -> StepOrders:
        return self._scheduler.orders(scheduler_output) if self._scheduler else NO_ORDERS

    def update_connector_output(self, connector_output: Any) -> None:
        result = connector_output.kv_connector_worker_meta
        if self._scheduler is not None and isinstance(result, StepResult):
            self._scheduler.result(result)

    def request_finished(self, request: Any, block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:
        if self._scheduler is not None:
            self._scheduler.finished(request.request_id)
        return False, None

    def request_finished_all_groups(
        self, request: Any, block_ids: tuple[list[int], ...]
    ) -> tuple[bool, dict[str, Any] | None]:
        return self.request_finished(request, [])

    def reset_cache(self) -> bool | None:
        """Asked for when the weights were changed; what is stored stays right for the weights it was computed with."""
        if self._switch is not None:
            self._switch.reset()
        return True

    # Worker

    def register_kv_caches(self, kv_caches: dict[str, Any]) -> None:
        if self._worker is not None:
            self._worker.register(kv_caches, get_layers_from_vllm_config(self._vllm_config, AttentionLayerBase))

    def get_handshake_metadata(self) -> WorkerReady | None:
        return self._worker.ready if self._worker else None

    def bind_connector_metadata(self, connector_metadata: Any) -> None:
        super().bind_connector_metadata(connector_metadata)
        if self._worker is not None:
            self._worker.begin()

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        if self._worker is not None:
            self._worker.load(self._get_connector_metadata())

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

    def get_finished(self, finished_req_ids: set[str]) -> tuple[set[str] | None, set[str] | None]:
        return None, self._worker.received() if self._worker else None

    def get_block_ids_with_load_errors(self) -> set[int]:
        return self._worker.invalid_blocks() if self._worker else set()

    def build_connector_worker_meta(self) -> StepResult | None:
        return self._worker.result() if self._worker else None

    # Both

    def shutdown(self) -> None:
        """What was just stored becomes visible, if that takes no longer than a few seconds."""
        if self._worker is not None:
            weights.unwatch(self._worker)
            self._worker = None  # it holds the KV cache's memory
        if self._cache is not None:
            cache, self._cache = self._cache, None
            self._guard.run("close", False, release, cache, FLUSH_SECONDS)
