"""The tensors of a DynamicCache as pools: where they are, and what doesn't fit."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kvlingua.adapters.hf.views import Layer, empty_layers, row_pool
from kvlingua.common.identity.namespace import Namespace
from kvlingua.layouts.convert import convert
from kvlingua.layouts.errors import LayoutError


def namespace(**changes: Any) -> Namespace:
    values: dict[str, Any] = {
        "fingerprint": "x", "model_config": {}, "overrides": {}, "rope": {}, "rope_order": "none",
        "compute_dtype": "float32", "weight_format": "safetensors", "quantization": None, "kv_dtype": "float32",
        "scales_policy": "none", "layers": 3, "kv_heads": 2, "planes": {"k": 8, "v": 4},
        "chunk_tokens": 4, "heads_per_shard": 1, "layers_per_shard": 3,
    }  # fmt: skip
    return Namespace(**(values | changes))


def filled(space: Namespace, rows: int, columns: int) -> list[Layer]:
    layers = empty_layers(space, rows, columns)
    for keys, values in layers:
        keys.copy_(torch.randn(keys.shape))
        values.copy_(torch.randn(values.shape))
    return layers


def dense(layers: list[Layer]) -> list[Layer]:
    return layers


def transposed(layers: list[Layer]) -> list[Layer]:
    """Heads inside tokens, as a projection's output lies before it is transposed."""
    return [
        (k.transpose(1, 2).contiguous().transpose(1, 2), v.transpose(1, 2).contiguous().transpose(1, 2))
        for k, v in layers
    ]


def cropped(layers: list[Layer]) -> list[Layer]:
    """A window of wider tensors, as `crop` leaves it."""
    return [(torch.cat([k, k], 2)[:, :, : k.shape[2]], torch.cat([v, v], 2)[:, :, : v.shape[2]]) for k, v in layers]


@settings(max_examples=60, deadline=None)
@given(
    dtype=st.sampled_from(["float32", "float16", "bfloat16"]),
    arrange=st.sampled_from([dense, cropped]),
    sizes=st.tuples(st.integers(1, 3), st.integers(1, 20), st.integers(1, 20)),
    data=st.data(),
)
def test_a_range_of_a_row_arrives_where_it_belongs(
    dtype: str, arrange: Callable[[list[Layer]], list[Layer]], sizes: tuple[int, int, int], data: st.DataObject
) -> None:
    rows, here, there = sizes
    tokens = data.draw(st.integers(1, min(here, there)))
    start, to = data.draw(st.integers(0, here - tokens)), data.draw(st.integers(0, there - tokens))
    row, to_row = data.draw(st.integers(0, rows - 1)), data.draw(st.integers(0, rows - 1))
    space = namespace(kv_dtype=dtype)
    source, target = arrange(filled(space, rows, here)), filled(space, rows, there)
    expected = [(k.clone(), v.clone()) for k, v in target]
    for (k, v), (want_k, want_v) in zip(source, expected, strict=True):
        want_k[to_row, :, to : to + tokens] = k[row, :, start : start + tokens]
        want_v[to_row, :, to : to + tokens] = v[row, :, start : start + tokens]
    convert(
        row_pool(space, source, row).view([0], start, start + tokens),
        row_pool(space, target, to_row).view([0], to, to + tokens),
    )
    for (k, v), (want_k, want_v) in zip(target, expected, strict=True):
        assert torch.equal(k, want_k)
        assert torch.equal(v, want_v)


@pytest.mark.parametrize(
    "change",
    [
        lambda layers: layers[:2],
        lambda layers: [*layers[:2], (layers[2][0][:, :, :5], layers[2][1])],
        lambda layers: [*layers[:2], (layers[2][0][:, :1], layers[2][1])],
        lambda layers: [*layers[:2], (layers[2][0].half(), layers[2][1])],
        lambda layers: [*layers[:2], (layers[2][0][0], layers[2][1])],
        lambda layers: [*layers[:2], *transposed(layers[2:])],
        transposed,
        lambda layers: [(values, keys) for keys, values in layers],
    ],
    ids=["layers", "columns", "heads", "dtype", "axes", "strides", "order", "planes"],
)
def test_what_does_not_fit(change: Callable[[list[Layer]], list[Layer]]) -> None:
    space = namespace()
    with pytest.raises(LayoutError, match=r"layer|layout"):
        row_pool(space, change(filled(space, 2, 6)), 0)


def test_tokens_beyond_the_columns() -> None:
    space = namespace()
    with pytest.raises(LayoutError):
        row_pool(space, filled(space, 2, 6), 1).view([0], 2, 7)
