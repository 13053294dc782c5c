"""Everything that can change KV is in the digest."""

import hashlib
import math
from dataclasses import fields
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvlingua.common.errors import IdentityError
from kvlingua.common.identity.namespace import MAX_NAMESPACE_BYTES, Namespace
from kvlingua.layouts.geometry import Plane
from tests.common.samples import CHANGES, FIELDS, namespace

CONFIGS = st.dictionaries(
    st.text(max_size=8), st.none() | st.booleans() | st.integers(-1000, 1000) | st.text(max_size=8), max_size=4
)


def test_samples_name_every_field() -> None:
    own = {field.name for field in fields(Namespace) if field.init} - {"format_version"}
    assert own == FIELDS.keys() == CHANGES.keys()


@pytest.mark.parametrize("name", FIELDS)
def test_any_other_value_of_any_field_is_another_namespace(name: str) -> None:
    one, other = namespace(), namespace(**{name: CHANGES[name]})
    assert one.digest != other.digest
    assert one != other
    assert [line.partition(":")[0].partition(".")[0] for line in one.differences(other)] == [name]


@given(CONFIGS, CONFIGS)
def test_configurations_share_a_digest_only_if_they_are_equal(one: dict[str, Any], other: dict[str, Any]) -> None:
    equal = repr(sorted(one.items())) == repr(sorted(other.items()))
    assert (namespace(model_config=one).digest == namespace(model_config=other).digest) == equal


@given(CONFIGS)
def test_reads_back(config: dict[str, Any]) -> None:
    one = namespace(model_config=config, overrides=config)
    again = Namespace.from_json(one.json())
    assert again == one
    assert hash(again) == hash(one)
    assert again.json() == one.json()
    assert again.digest == hashlib.sha256(one.json()).hexdigest()
    assert one.differences(again) == []


def test_integral_floats_are_integers() -> None:
    assert namespace(rope={"theta": 10000.0}) == namespace(rope={"theta": 10000})


def test_what_the_caller_does_to_its_mappings_changes_nothing() -> None:
    config = {"a": {"b": 1}}
    one = namespace(model_config=config)
    digest = one.digest
    config["a"]["b"] = 2
    assert one.digest == digest == Namespace.from_json(one.json()).digest
    assert one.model_config == {"a": {"b": 1}}


def test_differences_read_like_a_sentence() -> None:
    one = namespace(kv_dtype="bfloat16")
    other = namespace(kv_dtype="float32", model_config={"model_type": "llama", "tied": True})
    assert one.differences(other) == [
        "kv_dtype: bfloat16 here, float32 there",
        "model_config.nested.list: [1,2.5,null,true] here, nothing there",
        "model_config.rms_norm_eps: 0.000001 here, nothing there",
        "model_config.tied: nothing here, true there",
    ]


def test_geometry_and_grid_follow() -> None:
    one = namespace()
    assert (one.geometry.layers, one.geometry.kv_heads, one.geometry.dtype) == (3, 4, "float16")
    assert one.geometry.planes == (Plane("k", 8), Plane("v", 6))
    assert (one.grid.kv_heads, one.grid.layers, one.grid.heads_per_shard, one.grid.layers_per_shard) == (4, 3, 1, 2)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("format_version", 1),
        ("format_version", False),
        ("fingerprint", ""),
        ("fingerprint", 7),
        ("fingerprint", "x" * 300),
        ("model_config", []),
        ("model_config", {"a": math.nan}),
        ("model_config", {1: 2}),
        ("model_config", {"a": "x" * MAX_NAMESPACE_BYTES}),
        ("rope_order", "sideways"),
        ("rope_order", ["half"]),
        ("compute_dtype", "fp8"),
        ("kv_dtype", None),
        ("quantization", 4),
        ("layers", 0),
        ("layers", True),
        ("layers", 3.0),
        ("k_dim", -1),
        ("chunk_tokens", 1 << 20),
        ("heads_per_shard", 3),
        ("layers_per_shard", 4),
    ],
)
def test_impossible_values_are_refused(name: str, value: object) -> None:
    with pytest.raises(IdentityError):
        namespace(**{name: value})


@pytest.mark.parametrize(
    "change",
    [
        (b"{", b"{ "),
        (b'"layers":3', b'"layers":3.0'),
        (b'"layers":3', b'"layers":true'),
        (b'"layers":3', b'"layers":"3"'),
        (b'"layers":3,', b""),
        (b'"layers":3', b'"layers":3,"more":1'),
        (b'"layers":3', b'"layers":3,"layers":3'),
        (b'"format_version":0', b'"format_version":1'),
    ],
)
def test_only_canonical_json_is_read(change: tuple[bytes, bytes]) -> None:
    data = namespace().json()
    assert data.replace(*change) != data
    with pytest.raises(IdentityError):
        Namespace.from_json(data.replace(*change))


@pytest.mark.parametrize("data", [b"", b"[]", b"null", b'"namespace"', b"\xff", b"{}", b"[" * 9999])
def test_what_is_no_namespace_is_refused(data: bytes) -> None:
    with pytest.raises(IdentityError, match="not a namespace"):
        Namespace.from_json(data)
