"""What differs between the releases of SGLang that are supported, each read and run.

| release | the match of a prefix | what is computed comes by |
|---|---|---|
| 0.5.20 | rows | cache_unfinished_req, cache_finished_req |
| 0.5.21 | rows | cache_unfinished_req, insert_req |
| 0.5.22, 0.5.23 | lengths | checkpoint |
"""

from typing import Any

import sglang
import torch

VERSION: str = sglang.__version__
_IS_20 = VERSION == "0.5.20"
_ROWS = VERSION in ("0.5.20", "0.5.21")  # matches and requests carry their rows [token] instead of how many there are
ALL_WAS_RUN = not _ROWS  # several ranks, LoRA, and the ways by hashes of pages: elsewhere they are refused

# Arguments, and attributes of requests and of the model's configuration, that a release doesn't have yet.
_NEW_IN_21 = ("enable_pd_role_switch", "token_indices_to_pool")
_NEW_IN_22 = ("attn_dp_size", "enable_kv_cache_sharding", "decision_layout")
_NEW_IN_23 = ("enable_paged_experts", "pointer_head")
ABSENT: tuple[str, ...] = {
    "0.5.20": (*_NEW_IN_21, *_NEW_IN_22, *_NEW_IN_23),
    "0.5.21": (*_NEW_IN_22, *_NEW_IN_23),
    "0.5.22": _NEW_IN_23,
}.get(VERSION, ())

# Kinds of rope whose table, once it is made longer than the model's own context, goes on without the scaling.
UNSCALED_BEYOND = ("linear", "yarn") if _IS_20 else ("linear",)

_UPDATER = "sglang.srt.model_executor.model_runner_components.weight_updater.WeightUpdater"
_MANAGER = "sglang.srt.managers.scheduler_components.weight_updater.SchedulerWeightUpdaterManager"
# Every method through which weights are written after the start. After begin_weight_update others may write them;
# before there were such sessions, one method received and loaded what is broadcast.
_SENT = ("update_weights_from_distributed",) if _IS_20 else ("load_weights_from_distributed", "begin_weight_update")
WEIGHT_WRITERS = (
    f"{_UPDATER}.update_weights_from_disk",
    f"{_UPDATER}.update_weights_from_tensor",
    f"{_UPDATER}.update_weights_from_ipc",
    *(f"{_UPDATER}.{name}" for name in _SENT),
    f"{_MANAGER}.release_memory_occupation",
    "sglang.srt.utils.weight_checker.WeightChecker._reset_tensors",
)


def build_tree(context: Any, cache_class: Any) -> Any:
    """SGLang's prefix cache for a TreeCacheBuildContext that `identity.describe` let pass, as a `cache_class`.

    0.5.20's own factory can't be given a class. What else it does is for sliding windows, recurrent state, KV of other
    kinds, HiCache, a host pool and linkers, all of which `describe` refuses.
    """
    if not _IS_20:
        from sglang.srt.mem_cache.registry import create_unified_radix_cache

        return create_unified_radix_cache(context, cache_class=cache_class)
    from sglang.srt.mem_cache.unified_cache.components import ComponentType

    context.params.tree_components = (ComponentType.FULL,)
    return cache_class(context.params)


def matched_tokens(match: Any) -> int:
    """How many tokens of a MatchResult SGLang has itself."""
    return len(match.device_indices) if _ROWS else int(match.device_prefix_len)


def prefix_tokens(request: Any) -> int:
    """The same, of a Req that was matched."""
    return len(request.prefix_indices) if _ROWS else int(request.prefix_len)


def prefix_rows(tree: Any, request: Any) -> torch.Tensor:
    """The rows [token] in which these lie."""
    if _ROWS:
        return request.prefix_indices  # type: ignore[no-any-return]
    return tree.path_device_indices(request.last_node)[: request.prefix_len]  # type: ignore[no-any-return]


def loaded(rows: torch.Tensor, node: Any) -> tuple[Any, Any]:
    """What `init_load_back` answers: these rows [token] were loaded, and are in the tree up to `node`."""
    return (rows.to(torch.int64) if _ROWS else len(rows)), node
