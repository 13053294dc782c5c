"""Counts how many columns of a prompt a model's forward is really given. Not a subtraction: what the engine does."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from kvlingua.common.errors import KVLinguaError


@dataclass
class Count:
    """first: length of the first forward's input. computed: length of all that were fed before the prompt's end was
    reached."""

    past: Any = None
    width: int = 0
    first: int = 0
    computed: int = 0


class ForwardCounter:
    """A forward pre-hook on a model. It counts for the calls of its own thread and changes nothing."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._local = threading.local()
        model.register_forward_pre_hook(self._see, with_kwargs=True)

    @staticmethod
    def remove_from(model: torch.nn.Module) -> None:
        """Take every such hook off the model, also one that it got by being copied."""
        for key, hook in list(model._forward_pre_hooks.items()):
            if isinstance(getattr(hook, "__self__", None), ForwardCounter):
                del model._forward_pre_hooks[key]
                model._forward_pre_hooks_with_kwargs.pop(key, None)

    @contextmanager
    def counting(self, past: Any = None, width: int = 0) -> Iterator[Count]:
        """Count this thread's forwards: all that read the prompt of `width` columns into `past`; without `past`, the
        first one."""
        outer = getattr(self._local, "count", None)
        self._local.count = count = Count(past, width)
        try:
            yield count
        finally:
            self._local.count = outer

    def _see(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> None:
        if kwargs is None:  # removed by another thread between torch's two looks at it
            return
        count: Count | None = getattr(self._local, "count", None)
        inputs = next((kwargs[name] for name in ("input_ids", "inputs_embeds") if kwargs.get(name) is not None), None)
        if count is None or inputs is None:
            return
        reads_prompt = not count.computed
        if count.past is not None:
            past = kwargs.get("past_key_values")
            reads_prompt = past is count.past and past.get_seq_length() < count.width
        if reads_prompt:
            count.first = count.first or inputs.shape[1]
            count.computed += inputs.shape[1]

    def __reduce__(self) -> Any:
        raise KVLinguaError("a model can't be pickled while kvlingua is attached: kvlingua.hf.detach(model) first")

    def __deepcopy__(self, memo: dict[int, Any]) -> "ForwardCounter":
        """A copied model keeps a hook that counts for nobody."""
        copy = object.__new__(ForwardCounter)
        copy._local = threading.local()
        return copy
