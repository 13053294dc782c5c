"""The adapter's two sides without a running engine, with vLLM's own configurations, requests and block pool."""

import gc
import json
import os
import sys
import time
import weakref
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from vllm import PoolingParams, SamplingParams
from vllm.distributed.kv_transfer import kv_transfer_state
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorRole
from vllm.engine.arg_utils import EngineArgs
from vllm.lora.request import LoRARequest
from vllm.model_executor.model_loader.utils import get_model_cls
from vllm.model_executor.models import ModelRegistry
from vllm.model_executor.models.llama import LlamaForCausalLM
from vllm.multimodal.inputs import MultiModalFeatureSpec, PlaceholderRange
from vllm.v1.core.block_pool import BlockPool
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.request import Request
from vllm.v1.worker.cpu_worker import CPUWorker

from demo.job import MODEL
from kvlingua.adapters.vllm import scheduler_side, weights
from kvlingua.adapters.vllm.connector import KVLinguaConnector
from kvlingua.adapters.vllm.identity import check_model_class, refusals
from kvlingua.adapters.vllm.live_weights import LiveWeights
from kvlingua.adapters.vllm.lora import Adapters
from kvlingua.adapters.vllm.metadata import StoreOrder, WorkerReady
from kvlingua.adapters.vllm.requests import passes_through
from kvlingua.adapters.vllm.scheduler_side import SchedulerSide
from kvlingua.adapters.vllm.switch import Switch
from kvlingua.adapters.vllm.views import pool_of
from kvlingua.common import storing
from kvlingua.common.activation import Activation
from kvlingua.common.cache import KVCache
from kvlingua.common.config import Config
from kvlingua.common.errors import UnsupportedError
from kvlingua.common.guard import Guard
from kvlingua.common.identity.chain import chain_digests
from kvlingua.common.identity.model import describe_model
from kvlingua.common.identity.namespace import Namespace
from kvlingua.layouts.view import Pool

PAGE = 32
BLOCKS = 16
IDS = [number * 7 % 500 for number in range(300)]  # whose KV is stored
OTHER = [number * 11 % 500 for number in range(300)]
PLAIN = {
    "model": str(MODEL),
    "dtype": "float32",
    "block_size": PAGE,
    "max_model_len": 1024,
    "skip_tokenizer_init": True,
}
DESCRIPTION = describe_model(MODEL, compute_dtype="float32", kv_dtype="float32")


def configuration(**changes: Any) -> Any:
    connector = {"kv_connector": "KVLingua", "kv_role": "kv_both"}
    return EngineArgs(
        **{**PLAIN, "enforce_eager": True, "kv_transfer_config": connector, **changes}
    ).create_engine_config()


def said(config: Any, version: str = "0.32.0") -> list[str]:
    plan = SimpleNamespace(has_mamba_layers=False, kv_cache_groups=[])
    return [f"{reason}: {message}" for reason, message in refusals(config, plan, version)]


def settings() -> dict[str, list[str]]:
    own = f"{LlamaForCausalLM.__module__}:{LlamaForCausalLM.__name__}"
    speculative = {"method": "ngram", "num_speculative_tokens": 2, "prompt_lookup_max": 3}
    found = {
        "plain": said(configuration()),
        "vLLM 0.29.0": said(configuration(), "0.29.0"),
        "download_dir and a folder": said(configuration(download_dir="/elsewhere")),
        "ignore_patterns": said(configuration(ignore_patterns="*-2.safetensors")),
        "speculative": said(configuration(speculative_config=speculative)),
        "pooling": said(configuration(runner="pooling", convert="embed")),
        "model_class_overrides": said(configuration(model_class_overrides={"LlamaForCausalLM": own})),
    }
    found["plain, asked for async scheduling"] = said(configuration(async_scheduling=True))  # never on a CPU
    forced = configuration()
    forced.scheduler_config.async_scheduling = True
    found["async_scheduling"] = said(forced)
    hub = configuration(download_dir="/elsewhere")
    hub.model_config.model = "org/tiny"  # which this machine doesn't have
    found["download_dir"] = said(hub)
    hub.load_config.download_dir = None
    found["a hub's model"] = said(hub)
    os.environ["VLLM_USE_MODELSCOPE"] = "1"
    found["modelscope"] = said(hub)
    del os.environ["VLLM_USE_MODELSCOPE"]
    return found


class Replaced(LlamaForCausalLM):  # type: ignore[misc]
    """What a plug-in registers under the name of a model that is known."""


def model_classes() -> dict[str, str]:
    """What is said of the class that vLLM makes of the model's architecture, before and after a plug-in's."""
    found = {"own": class_refusal(get_model_cls(configuration().model_config))}
    ModelRegistry.register_model("LlamaForCausalLM", Replaced)
    # Another length of context makes no other model, but vLLM remembers the class by model and implementation.
    found["plug-in"] = class_refusal(get_model_cls(configuration(model_impl="vllm").model_config))
    return found


def class_refusal(model: type) -> str:
    try:
        check_model_class(model)
    except UnsupportedError as error:
        return f"{error.reason}: {error}"
    return "fits"


def live_weights() -> dict[str, bool]:
    """Whether a model with tied weights, and a packed layer, is seen as what it was after this and that."""
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4), torch.nn.LayerNorm(4))
    first, second, norm = model
    second.weight = first.weight
    first.cpu_linear = first.forward
    first.kv_cache = torch.zeros(8)
    norm.scale = torch.tensor(1.0, dtype=torch.bfloat16)
    seen = LiveWeights(model)
    found = {}

    def after(what: str) -> None:
        nonlocal seen
        found[what] = seen.unchanged()
        seen = LiveWeights(model)

    after("nothing")
    first.kv_cache.fill_(1.0)
    after("a forward")
    first.weight.data[3, 3] += 1e-3
    after("a write through data")
    norm.scale.fill_(2.0)
    after("a tensor that is no parameter")
    first.cpu_linear = second.forward
    after("another function")
    second.weight = torch.nn.Parameter(first.weight.clone().reshape(2, 8))
    after("another shape")
    norm.eps *= 2
    after("a number")
    model.append(torch.nn.Identity())
    after("another module")
    norm.register_forward_hook(lambda *_: None)
    after("a hook")
    return found


def kinds(ids: Sequence[int]) -> dict[str, Request]:
    place = PlaceholderRange(offset=0, length=4)
    image = MultiModalFeatureSpec(data=None, modality="image", identifier="x", mm_position=place)
    embeds = torch.zeros(len(ids), 4)
    tokens, sampling = list(ids), {"sampling_params": SamplingParams(max_tokens=1), "pooling_params": None}
    return {
        "plain": Request("plain", tokens, **sampling),
        "salted": Request("salted", tokens, cache_salt="a", **sampling),
        "multimodal": Request("multimodal", tokens, mm_features=[image], **sampling),
        "pooling": Request("pooling", tokens, sampling_params=None, pooling_params=PoolingParams()),
        "embeds": Request("embeds", None, prompt_embeds=embeds, **sampling),
        "mixed": Request("mixed", tokens, prompt_embeds=embeds, prompt_is_token_ids=[True] * len(ids), **sampling),
        "lora": Request("lora", tokens, lora_request=LoRARequest("l", 1, "/nowhere"), **sampling),
        "growing": Request("growing", tokens, resumable=True, **sampling),
    }


def step(*ids: str) -> Any:
    """What vLLM's scheduler says of a step that computes the whole prompts of these new requests."""
    return SimpleNamespace(
        scheduled_new_reqs=[SimpleNamespace(req_id=one, num_computed_tokens=0) for one in ids],
        scheduled_cached_reqs=SimpleNamespace(req_ids=[], num_computed_tokens=[]),
        num_scheduled_tokens=dict.fromkeys(ids, len(IDS)),
        preempted_req_ids=set(),
        total_num_scheduled_tokens=len(ids) * len(IDS),
        kv_connector_block_state=SimpleNamespace(get_block_ids=lambda one: (list(range(BLOCKS)),)),
    )


def requests(folder: Path) -> dict[str, Any]:
    """Every kind of request, with token ids that are stored and with others: promised tokens, ordered stores."""
    cache = KVCache.open(Config(url=(folder / "store").as_uri(), fingerprint_dir=folder / "fingerprints"))
    guard = Guard("vllm")
    switch = Switch(Activation(cache, DESCRIPTION, guard), PAGE)
    block_pool = BlockPool(num_gpu_blocks=BLOCKS, enable_caching=True, hash_block_size=PAGE)
    switch.workers_ready([WorkerReady("vllm_cpu_vec")])
    time.sleep(2.0)
    unwatched = switch.namespace is None
    manager = SimpleNamespace(block_pool=block_pool, reset_prefix_cache=block_pool.reset_prefix_cache, freed=[])
    manager.free = manager.freed.append
    let_go: list[str] = []
    switch.watch(block_pool, manager, lambda: let_go.append("called"))
    while (namespace := switch.namespace) is None:
        time.sleep(0.05)
    fill(cache, namespace)
    side = SchedulerSide(cache, switch, guard, PAGE, Adapters(configuration()))
    promised = {name: asked(side, request) for name, request in kinds(IDS).items()}
    for name in promised:
        side.finished(name)
    found = {
        "passes": {name: passes_through(request) for name, request in kinds(IDS).items()},
        "promised": promised,
        "promised of others": {name: asked(side, request) for name, request in kinds(OTHER).items()},
        "ordered": sorted(order.request_id for order in side.orders(step(*promised)).stores),
        "unwatched": unwatched,
    }
    found["waits"] = waits(side)
    plain = side._requests["plain"].request
    plain.num_preemptions += 1
    found["held"] = [side.finished("salted"), side.finished("plain"), side.finished("embeds")]
    side.allocated(SimpleNamespace(request_id="plain"), None, 64)  # blocks that aren't what vLLM gives
    (load,) = side.orders(step()).loads
    found["broken load"] = [load.request_id, load.hit]
    side.free_held(manager)
    side.free_held(manager)
    found["freed"] = [request.request_id for request in manager.freed]
    block_pool.reset_prefix_cache()
    found["after a reset"] = switch.namespace
    switch.proved([switch.unproved])
    in_use = block_pool.get_new_blocks(1)
    found["refused reset"] = [manager.reset_prefix_cache(), let_go, bool(switch.unproved)]
    block_pool.free_blocks(in_use)
    return found


def waits(side: SchedulerSide) -> list[float]:
    """For how long requests wait at most that are first asked for in one step, while the store doesn't answer."""
    found: list[float] = []

    def wait(_: object, timeout: float) -> None:
        found.append(timeout)
        time.sleep(timeout)

    with patch.object(scheduler_side, "wait", wait):
        side.orders(step())
        for number in range(3):
            tokens = [number + 1, *OTHER]
            side.matched(Request(f"late {number}", tokens, sampling_params=SamplingParams(), pooling_params=None), 0)
            side.finished(f"late {number}")
    return found


def asked(side: SchedulerSide, request: Request) -> int:
    """What the scheduler's side says when it knows."""
    while (tokens := side.matched(request, 0)) is None:
        time.sleep(0.01)
    return tokens


def a_pool(namespace: Namespace) -> Pool:
    k, v = namespace.geometry.planes
    shape = (BLOCKS, namespace.geometry.kv_heads, PAGE, k.width + v.width)
    tensors = [torch.rand(shape) for _ in range(namespace.geometry.layers)]
    return pool_of("vllm_cpu_vec", tensors, namespace.geometry, page=PAGE, blocks=BLOCKS)


def fill(cache: KVCache, namespace: Namespace) -> None:
    cache.store(namespace, IDS, a_pool(namespace).view(list(range(BLOCKS)), 0, len(IDS)), 0, len(IDS))
    assert cache.flush(10.0)


def kv_cache_config() -> KVCacheConfig:
    geometry = DESCRIPTION.geometry
    names = [f"model.layers.{layer}.self_attn.attn" for layer in range(geometry.layers)]
    spec = FullAttentionSpec(
        block_size=PAGE,
        num_kv_heads=geometry.kv_heads,
        head_size=geometry.planes[0].width,
        dtype=torch.float32,
    )
    return KVCacheConfig(num_blocks=BLOCKS, kv_cache_tensors=[], kv_cache_groups=[KVCacheGroupSpec(names, spec)])


def connectors(folder: Path) -> dict[str, Any]:
    """Connectors at whose start something fails."""
    settings = {"url": (folder / "store").as_uri(), "metrics_dir": str(folder / "metrics")}
    connector = {"kv_connector": "KVLingua", "kv_role": "kv_both", "kv_connector_extra_config": settings}

    def made(role: str, plan: Any) -> KVLinguaConnector:
        return KVLinguaConnector(configuration(kv_transfer_config=connector), KVConnectorRole[role], plan)

    print("case: unexpected", file=sys.stderr)
    made("SCHEDULER", None).shutdown()
    print("case: unwatched", file=sys.stderr)
    scheduler = made("SCHEDULER", kv_cache_config())
    scheduler.bind_kv_cache_manager(SimpleNamespace(block_pool=None))
    scheduler.shutdown()
    print("case: worker", file=sys.stderr)
    scheduler, worker = made("SCHEDULER", kv_cache_config()), made("WORKER", None)
    scheduler.set_xfer_handshake_metadata({0: worker.get_handshake_metadata()})
    print("case: register", file=sys.stderr)
    scheduler, worker = made("SCHEDULER", kv_cache_config()), made("WORKER", kv_cache_config())
    worker.register_kv_caches({})
    scheduler.set_xfer_handshake_metadata({0: worker.get_handshake_metadata()})
    print("case: within another", file=sys.stderr)
    scheduler, worker = made("SCHEDULER", kv_cache_config()), made("WORKER", kv_cache_config())
    kv_transfer_state._KV_CONNECTOR_AGENT = object()  # as where a MultiConnector has made this one
    worker.register_kv_caches({})
    kv_transfer_state._KV_CONNECTOR_AGENT = None
    scheduler.set_xfer_handshake_metadata({0: worker.get_handshake_metadata()})
    print("case: end", file=sys.stderr)
    gone = []
    for _ in range(3):
        one = made("WORKER", kv_cache_config())
        gone.append(weakref.ref(one._worker))
        one.shutdown()
    worker.shutdown()
    stored = ordered_last(made("WORKER", kv_cache_config()))
    gc.collect()
    method, wrappers = CPUWorker.reload_weights, 0
    while hasattr(method, "__wrapped__"):
        method, wrappers = method.__wrapped__, wrappers + 1
    return {"alive": sum(one() is not None for one in gone), "wrappers": wrappers, "stored last": stored}


def ordered_last(connector: KVLinguaConnector) -> int:
    """How many chunks are stored that a worker begins to copy, slowly, when its engine ends."""
    cache, worker, gather = connector._cache, connector._worker, storing._gather
    space = DESCRIPTION.namespace("0" * 32, chunk_tokens=64)
    worker._pool = a_pool(space)
    worker._stores.expect("last")
    with patch.object(storing, "_gather", lambda *arguments: (time.sleep(0.3), gather(*arguments))):
        worker._store(StoreOrder("last", tuple(chain_digests(IDS, 64)), (tuple(range(BLOCKS)),), 0, 256), space)
        connector.shutdown()
        return cache.flush(10.0) and cache.stats["tokens_stored"] // 64  # it is still open for other connectors


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    parts = {
        "settings": settings(),
        "requests": requests(folder),
        "live weights": live_weights(),
        "connectors": connectors(folder / "connectors"),
        "model classes": model_classes(),
        "writers": weights.WRITERS,
        "worker methods": [name for name in dir(CPUWorker) if name[0] != "_" and callable(getattr(CPUWorker, name))],
    }
    print(json.dumps(parts))
