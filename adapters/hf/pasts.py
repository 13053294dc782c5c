"""The caches that `generate` works on (`past_key_values`): made, filled with what was loaded, read when it is done."""

from collections.abc import Sequence
from typing import Any

from transformers import DynamicCache, StaticCache
from transformers.cache_utils import (
    Cache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    StaticLayer,
    StaticSlidingWindowLayer,
)

from kvlingua.adapters.hf.views import Layer
from kvlingua.common.errors import LayoutError, UnsupportedError

_DYNAMIC = (DynamicLayer, DynamicSlidingWindowLayer)
_STATIC = (StaticLayer, StaticSlidingWindowLayer)


def dynamic_past(model: Any, layers: int) -> DynamicCache:
    """An empty cache that grows. Raises LayoutError if this model's wouldn't be plain layers, full or with windows."""
    return _checked(DynamicCache(config=model.config.get_text_config(decoder=True)), layers, _DYNAMIC)


def static_past(model: Any, layers: int, columns: int) -> StaticCache:
    """An empty cache of a fixed size: at least `columns`, and not less than the last, so that nothing is compiled
    again."""
    columns = max(columns, getattr(model, "_previous_max_cache_length", -1))  # as transformers does it itself
    past = _checked(
        StaticCache(config=model.config.get_text_config(decoder=True), max_cache_len=columns), layers, _STATIC
    )
    model._previous_max_cache_length = columns
    return past


def check_empty(past: Any, model: Any, layers: int) -> None:
    """Raise UnsupportedError unless a caller's cache is empty and what transformers itself would make of this model."""
    if type(past) is DynamicCache:
        expected: Any = dynamic_past(model, layers)
    elif type(past) is StaticCache and past.layers:
        text = model.config.get_text_config(decoder=True)
        expected = StaticCache(config=text, max_cache_len=max(layer.max_cache_len for layer in past.layers))
    else:
        raise _foreign(f"a {type(past).__name__}")
    lazy = type(past) is DynamicCache and not past.layers and past.layer_class_to_replicate is DynamicLayer
    found = [(DynamicLayer, None, None)] * layers if lazy else [_kind(layer) for layer in past.layers]
    if (
        found != [_kind(layer) for layer in expected.layers]
        or past.offloading
        or vars(past).keys() & set(dir(type(past)))
    ):
        raise _foreign("a cache of other layers than this model's")
    if any(int(layer.get_seq_length()) for layer in past.layers):
        raise _foreign("a cache that holds something: what, isn't known")


def fill(past: Cache, layers: Sequence[Layer], device: Any, repeats: int) -> None:
    """Put keys and values `[row, kv head, column, dim]` of all layers into an empty cache, each row `repeats` times."""
    for number, tensors in enumerate(layers):
        keys, values = (tensor.to(device).repeat_interleave(repeats, dim=0) for tensor in tensors)
        past.update(keys, values, number)


def record(past: Cache) -> None:
    """Have layers with a window keep what falls out of it, until `forget`."""
    if isinstance(past, DynamicCache):
        past.activate_past_recording()


def forget(past: Cache) -> None:
    """Make it the cache that it would be without `record`."""
    for layer in past.layers:
        if isinstance(layer, DynamicSlidingWindowLayer) and layer.record_past:
            layer.record_past = False
            if layer.is_initialized:
                layer.keys, layer.values = (
                    tensor[:, :, -layer.sliding_window + 1 :, :].clone() for tensor in (layer.keys, layer.values)
                )


def columns_of(past: Cache) -> int:
    """How many columns it holds, or held before windows dropped some."""
    return max((int(layer.get_seq_length()) for layer in past.layers), default=0)


def held(past: Cache, columns: int) -> list[Layer]:
    """Keys and values of all layers, `[row, kv head, column, dim]`, from the first column to beyond `columns`, on the
    CPU.

    Raises UnsupportedError if a window has dropped some of them, LayoutError if there never were as many.
    """
    layers = []
    for layer in past.layers:
        if not layer.is_initialized or layer.get_seq_length() < columns:
            raise LayoutError(f"a layer of the cache doesn't hold {columns} columns after generate")
        if isinstance(layer, StaticSlidingWindowLayer) and layer.get_seq_length() > layer.max_cache_len:
            raise UnsupportedError("window", "a window of the static cache has dropped what it held")
        if layer.keys.shape[2] < columns:
            raise UnsupportedError("window", f"a window has dropped all but {layer.keys.shape[2]} columns")
        layers.append((layer.keys[:, :, :columns].cpu(), layer.values[:, :, :columns].cpu()))
    return layers


def _checked(past: Any, layers: int, kinds: tuple[Any, ...]) -> Any:
    if len(past.layers) != layers or any(type(layer) not in kinds for layer in past.layers):
        names = ", ".join(sorted({type(layer).__name__ for layer in past.layers}))
        raise LayoutError(
            f"transformers gives this model {len(past.layers)} layers ({names}), expected {layers} plain ones"
        )
    return past


def _kind(layer: Any) -> tuple[object, ...]:
    return type(layer), getattr(layer, "sliding_window", None), getattr(layer, "max_cache_len", None)


def _foreign(what: str) -> UnsupportedError:
    return UnsupportedError("past_key_values", f"past_key_values is {what}")
