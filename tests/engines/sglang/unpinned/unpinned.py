"""A plug-in of SGLang's for tests: what should be pinned is ordinary memory. Without a GPU torch has no other, and
SGLang's LoRA asks for it on a CPU, too; pinning changes no number."""

from collections.abc import Callable
from typing import Any

import torch


def register() -> None:
    """SGLang calls it in every process, before it builds anything."""
    if torch.cuda.is_available():
        return
    for name in ("tensor", "empty", "zeros"):
        setattr(torch, name, _unpinned(getattr(torch, name)))
    torch.Tensor.pin_memory = lambda tensor, *_: tensor  # type: ignore[method-assign]


def _unpinned(make: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, pin_memory: bool = False, **kwargs: Any) -> Any:
        return make(*args, **kwargs)

    return call
