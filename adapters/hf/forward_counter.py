"""Watches what a model's forward is really given during a `generate`: how many columns, and which token ids."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from kvlingua.common.errors import KVLinguaError


@dataclass
class Count:
    """One `generate`. past, width, start: of `counting`.

    first: length of the first forward's input. computed: columns that were fed before the prompt's end was reached.
    columns: those that `past` holds if every forward was seen. ids, positions: `[row, column]` of each forward with
    `past`, from column `start` on; positions are None where the forward got none.
    """

    past: Any = None
    width: int = 0
    start: int = 0
    first: int = 0
    computed: int = 0
    columns: int = field(init=False)
    ids: list[torch.Tensor] = field(default_factory=list)
    positions: list[torch.Tensor | None] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.columns = self.start


class ForwardCounter:
    """A forward pre-hook on a model. It counts for the calls of its own thread and changes nothing. What torch compiles
    runs without it."""

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
    def counting(self, past: Any = None, width: int = 0, start: int = 0) -> Iterator[Count]:
        """Count this thread's forwards: all with `past`, which holds `start` columns of a prompt of `width`; without
        `past`, the first one."""
        outer = getattr(self._local, "count", None)
        self._local.count = count = Count(past, width, start)
        try:
            yield count
        finally:
            self._local.count = outer

    def _see(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> None:
        # Without kwargs: removed by another thread between torch's two looks at it.
        if torch.compiler.is_compiling() or kwargs is None:
            return
        count: Count | None = getattr(self._local, "count", None)
        inputs = next((kwargs[name] for name in ("input_ids", "inputs_embeds") if kwargs.get(name) is not None), None)
        if count is None or inputs is None:
            return
        if count.past is None:
            count.first = count.first or inputs.shape[1]
            count.computed = count.first
        elif kwargs.get("past_key_values") is count.past:
            count.first = count.first or inputs.shape[1]
            count.computed += inputs.shape[1] if count.columns < count.width else 0
            count.columns += inputs.shape[1]
            if inputs.dim() == 2:
                count.ids.append(inputs)
                count.positions.append(kwargs.get("position_ids"))

    def __reduce__(self) -> Any:
        raise KVLinguaError("a model can't be pickled while kvlingua is attached: kvlingua.hf.detach(model) first")

    def __deepcopy__(self, memo: dict[int, Any]) -> "ForwardCounter":
        """A copied model keeps a hook that counts for nobody."""
        copy = object.__new__(ForwardCounter)
        copy._local = threading.local()
        return copy
