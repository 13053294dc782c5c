"""Weights that change while vLLM runs."""

import functools
from collections.abc import Callable
from typing import Any, Protocol
from weakref import WeakSet

from vllm.v1.worker.cpu_worker import CPUWorker

# The methods of vLLM's worker that write weights, hand them out to be written, or are steps on the way to new ones, of
# all supported versions. Each can be called from outside (collective_rpc, the HTTP API), and no hook of a connector
# tells of it. A test compares this list with what a version has.
WRITERS = (
    "load_model",
    "reload_weights",
    "reset_weights",
    "apply_model",
    "get_model",
    "update_config",
    "init_weight_transfer_engine",
    "start_weight_update",
    "start_draft_weight_update",
    "update_weights",
    "finish_weight_update",
    "checkpoint_restore",
    "sleep",
    "wake_up",
    "discard",
    "elastic_ep_execute",
    "handle_ft_command",
)


class Watcher(Protocol):
    def weights_change(self, how: str) -> None: ...


_watchers: WeakSet[Watcher] = WeakSet()


def watch(watcher: Watcher) -> None:
    """Tell `watcher`, as long as it lives, before a worker of vLLM's in this process runs one of WRITERS.

    Not seen: a function of a caller's own, given to `collective_rpc`, that reaches for the model itself.
    """
    _watchers.add(watcher)
    for name in WRITERS:
        method = getattr(CPUWorker, name, None)  # not every version has all
        if method is not None and not hasattr(method, "kvlingua_watches"):
            setattr(CPUWorker, name, _watched(name, method))


def unwatch(watcher: Watcher) -> None:
    """`watcher` is told no more."""
    _watchers.discard(watcher)


def _watched(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        for watcher in list(_watchers):
            watcher.weights_change(name)
        return original(self, *args, **kwargs)

    method.kvlingua_watches = True  # type: ignore[attr-defined]
    return method
