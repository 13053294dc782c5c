"""Hostile objects of fp8 numbers with scales: what their headers say of scales must be what follows, too."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from kvlingua.common.container import Container, parse_header
from kvlingua.common.errors import ContainerError
from kvlingua.layouts.geometry import Extent
from tests.attacks.forger import change, signed
from tests.common.samples import namespace, stored

CONTAINER = Container(namespace(kv_dtype="float8_e4m3fn", scales_policy="tensor"), Extent(0, 4, 0, 3))
OBJECT, DIGEST = (bytes(part) for part in stored(CONTAINER))
NUMBERS = CONTAINER.data_bytes - 2 * 4 * 3  # two scales, float32, for each of 3 layers
SCALES: dict[str, Callable[[dict[str, Any]], object]] = {
    "scales per head": change("k_scale", "shape", to=[4, 3, 1, 1]),
    "scales of another type": change("k_scale", "dtype", to="F16"),
    "scales in the numbers": change("k_scale", "data_offsets", to=[0, 12]),
    "scales out of place": change("k_scale", "data_offsets", to=[NUMBERS + 2, NUMBERS + 14]),
    "numbers of another fp8": change("k", "dtype", to="F8_E4M3FNUZ"),
    "no scales": lambda values: values.pop("k_scale"),
    "scales without numbers": lambda values: values.pop("k"),
    "no checksum of scales": lambda values: values["__metadata__"].pop("checksums_v_scale"),
    "a checksum for every shard": lambda values: values["__metadata__"].update(checksums_k_scale="0" * 32 * 8),
}


@pytest.mark.parametrize("name", SCALES)
def test_scales_that_lie(name: str) -> None:
    values: dict[str, Any] = json.loads(OBJECT[8 : CONTAINER.header_bytes])
    data = OBJECT[CONTAINER.header_bytes :]
    assert signed(values, data=data) == OBJECT
    SCALES[name](values)
    hostile = signed(values, data=data)
    with pytest.raises(ContainerError):
        parse_header(hostile, len(hostile))
    with pytest.raises(ContainerError):
        CONTAINER.verify(memoryview(hostile), DIGEST, CONTAINER.extent)
