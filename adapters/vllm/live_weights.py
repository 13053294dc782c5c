"""What a loaded model computes with: whether it is still what it was when the engine started, to the bit."""

import functools
from collections.abc import Callable
from typing import Any, Protocol
from weakref import WeakSet

import torch
import xxhash
from vllm.v1.worker.cpu_worker import CPUWorker

_KV = "kv_cache"  # an attention layer's attribute, the one tensor that is meant to change


class LiveWeights:
    """Every tensor of a model's modules by its bytes, and which modules and functions they hold by identity: vLLM keeps
    some weights packed, where only the function that uses them reaches them.

    Takes about as long as it takes to read the weights from memory.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self._model = model
        self._seen = self._look()

    def unchanged(self) -> bool:
        """Compares them as they are now. Begin it after the writes that are in question. May run beside forwards."""
        return self._look() == self._seen

    def _look(self) -> dict[str, object]:
        digests: dict[tuple[object, ...], object] = {}  # tied tensors are read once
        seen: dict[str, object] = {}
        for name, module in self._model.named_modules(remove_duplicate=False):
            seen[name] = _Same(module)
            own = vars(module)
            for group in (own, own["_parameters"], own["_buffers"], own["_modules"]):
                for key, value in group.items():
                    if isinstance(value, torch.Tensor):
                        if key != _KV:
                            seen[f"{name}.{key}"] = _digest(value, digests)
                    elif callable(value):
                        seen[f"{name}.{key}"] = _Same(value)
                    elif value is None or isinstance(value, (bool, int, float, str, torch.dtype)):
                        seen[f"{name}.{key}"] = value
            for key in ("_forward_pre_hooks", "_forward_hooks"):
                seen[f"{name}.{key}"] = [_Same(hook) for hook in own[key].values()]
        return seen


class _Same:
    """Equal to nothing but the same object, which it keeps, so that no other gets its address."""

    def __init__(self, value: object) -> None:
        self._value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other._value is self._value

    __hash__ = None  # type: ignore[assignment]


def _digest(tensor: torch.Tensor, known: dict[tuple[object, ...], object]) -> object:
    """dtype, shape and xxh3-128 of the bytes, which is against accidents, as in the objects."""
    data = tensor.detach()
    key = data.data_ptr(), data.dtype, data.shape, data.stride()
    if key not in known:
        flat = data.contiguous().reshape(-1).view(torch.uint8)
        known[key] = str(data.dtype), tuple(data.shape), xxhash.xxh3_128(flat.numpy().data).hexdigest()
    return known[key]


class Owner(Protocol):
    def model_loaded(self, model: torch.nn.Module) -> None: ...


_owners: WeakSet[Owner] = WeakSet()


def await_model(owner: Owner) -> None:
    """Hand the model to `owner` when a worker of vLLM's in this process has loaded, compiled and run it, once, before
    anybody can ask the engine for anything."""
    _owners.add(owner)
    method = CPUWorker.compile_or_warm_up_model
    if not hasattr(method, "kvlingua_hands_out"):
        CPUWorker.compile_or_warm_up_model = _handing_out(method)


def _handing_out(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        done = original(self, *args, **kwargs)
        for owner in list(_owners):
            _owners.discard(owner)
            owner.model_loaded(self.model_runner.model)
        return done

    method.kvlingua_hands_out = True  # type: ignore[attr-defined]
    return method
