"""Weights that change while vLLM runs."""

import functools
from collections.abc import Callable
from typing import Any

from vllm.v1.worker.gpu_worker import Worker


def on_reload(notify: Callable[[], None]) -> None:
    """Call `notify` before vLLM's workers in this process load weights anew.

    No hook of a connector tells of `collective_rpc("reload_weights")`, so the method is wrapped. The other ways to
    change weights need settings with which the adapter is off from the start (weight_transfer_config,
    worker_extension_cls).
    """
    original = Worker.reload_weights

    @functools.wraps(original)
    def reload_weights(self: Any, *args: Any, **kwargs: Any) -> Any:
        notify()
        return original(self, *args, **kwargs)

    Worker.reload_weights = reload_weights
