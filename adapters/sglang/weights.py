"""Notices when a running SGLang changes its weights: by SGLang's plug-in hooks on everything that does so.

The radix cache can't tell: an update shows there as a reset, like /flush_cache does, or, with flush_cache=False, not
at all.
"""

import pkgutil
from collections.abc import Callable
from typing import Any

from kvlingua.common.errors import UnsupportedError

_UPDATER = "sglang.srt.model_executor.model_runner_components.weight_updater.WeightUpdater"
_MANAGER = "sglang.srt.managers.scheduler_components.weight_updater.SchedulerWeightUpdaterManager"
# Every method through which weights are written after the start. After begin_weight_update others may write them.
_WRITERS = (
    f"{_UPDATER}.update_weights_from_disk",
    f"{_UPDATER}.update_weights_from_tensor",
    f"{_UPDATER}.update_weights_from_ipc",
    f"{_UPDATER}.load_weights_from_distributed",
    f"{_UPDATER}.begin_weight_update",
    f"{_MANAGER}.release_memory_occupation",
    "sglang.srt.utils.weight_checker.WeightChecker._reset_tensors",
)


def watch(changed: Callable[[str, str], None]) -> None:
    """Call `changed`, which must not raise, with a code and a sentence before the weights are written.

    Must run before SGLang's scheduler takes requests. Raises UnsupportedError if one of the places can't be watched.
    """
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    before = {target: _method(target) for target in _WRITERS}
    for target in _WRITERS:
        HookRegistry.register(target, _hook(changed, target.rpartition(".")[2]), HookType.BEFORE)
    HookRegistry.apply_hooks()
    unwatched = [target for target in _WRITERS if _method(target) is before[target]]
    if unwatched:
        raise UnsupportedError("weights_unwatched", f"new weights would go unnoticed: no hook on {unwatched[0]}")


def _method(target: str) -> Any:
    path, _, name = target.rpartition(".")
    return getattr(pkgutil.resolve_name(path), name)


def _hook(changed: Callable[[str, str], None], name: str) -> Callable[..., None]:
    def hook(*args: object, **kwargs: object) -> None:
        message = f"SGLang's weights were changed while it ran ({name}); restart it to share KV again"
        changed("weights", message)

    return hook
