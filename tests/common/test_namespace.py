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
from kvlingua.layouts.geometry import Plane, Rope
from tests.common.samples import BASES, CHANGES, FIELDS, namespace

CONFIGS = st.dictionaries(
    st.text(max_size=8), st.none() | st.booleans() | st.integers(-1000, 1000) | st.text(max_size=8), max_size=4
)


def test_samples_name_every_field() -> None:
    own = {field.name for field in fields(Namespace) if field.init} - {"format_version"}
    assert own == FIELDS.keys() == CHANGES.keys()


@pytest.mark.parametrize("name", FIELDS)
def test_any_other_value_of_any_field_is_another_namespace(name: str) -> None:
    base = BASES.get(name, {})
    one, other = namespace(**base), namespace(**base, **{name: CHANGES[name]})
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
    one = {"theta": 10000.0, "rotary_dim": 8}
    assert namespace(rope=one) == namespace(rope=one | {"theta": 10000})


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
    assert one.geometry.planes == (Plane("k", 8, "float16", rope=Rope("half", 8)), Plane("v", 6, "float16"))
    assert (one.grid.kv_heads, one.grid.layers, one.grid.heads_per_shard, one.grid.layers_per_shard) == (4, 3, 1, 2)


def test_planes_scales_and_what_is_rotated_follow() -> None:
    scaled = {"kv_dtype": "float8_e4m3fnuz", "rope": {"rotary_dim": 4}, "rope_order": "interleaved"}
    for policy in ("tensor", "head", "token"):
        geometry = namespace(**scaled, scales_policy=policy).geometry
        assert [(plane.name, plane.width, plane.dtype, plane.per) for plane in geometry.planes] == [
            ("k", 8, "float8_e4m3fnuz", "token"),
            ("v", 6, "float8_e4m3fnuz", "token"),
            ("k_scale", 1, "float32", policy),
            ("v_scale", 1, "float32", policy),
        ]
        assert [plane.rope for plane in geometry.planes] == [Rope("interleaved", 4), Rope(), Rope(), Rope()]
    latent = namespace(kv_heads=1, planes={"rope": 8, "latent": 64}, rope={"rotary_dim": 8}).geometry
    assert [(plane.name, plane.width, plane.rope) for plane in latent.planes] == [
        ("latent", 64, Rope()),
        ("rope", 8, Rope("half", 8)),
    ]
    unrotated = namespace(rope_order="none", rope={}).geometry
    assert {plane.rope for plane in unrotated.planes} == {Rope()}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scales_policy": "token"}, "scales .token. belong to fp8 numbers, not to float16"),
        (
            {"scales_policy": "token", "kv_dtype": "float8_e5m2", "chunk_tokens": 5},
            "chunks of 5 tokens x .k 8 . v 6. take 70 bytes per head and layer, which must be a multiple of 4",
        ),
        ({"planes": {"latent": 64, "rope": 8}}, "a latent is one kv head, not 4"),
        ({"planes": {"k": 8}}, "planes are k and v or latent and rope, not 'k'"),
        ({"planes": {"k": 8, "v": 0}}, "the width of plane v is an integer from 1"),
        ({"rope": {"rotary_dim": 10}}, "10 of 8 elements can't be rotated in pairs"),
        ({"rope": {"rotary_dim": 3}}, "3 of 8 elements can't be rotated in pairs"),
        ({"rope": {}}, "rotary_dim is an integer"),
        ({"rope_order": "none"}, "rope is empty where rope_order is none"),
        ({"kv_dtype": "uint8"}, "kv_dtype is one of"),
        ({"kv_dtype": "float4_e2m1fn_x2"}, "kv_dtype is one of"),
    ],
)
def test_what_does_not_go_together_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(IdentityError, match=message):
        namespace(**changes)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("format_version", 0),
        ("format_version", 2),
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
        ("compute_dtype", "float8_e4m3fn"),
        ("scales_policy", "per_tensor"),
        ("scales_policy", None),
        ("kv_dtype", None),
        ("quantization", 4),
        ("layers", 0),
        ("layers", True),
        ("layers", 3.0),
        ("planes", {"k": 8, "v": -1}),
        ("planes", {"k": 8, "v": 8, "w": 8}),
        ("planes", ["k", "v"]),
        ("planes", {}),
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
        (b'"format_version":1', b'"format_version":2'),
        (b'"planes":{"k":8,"v":6}', b'"planes":{"v":6,"k":8}'),
    ],
)
def test_only_canonical_json_is_read(change: tuple[bytes, bytes]) -> None:
    data = namespace().json()
    assert data.replace(*change) != data
    with pytest.raises(IdentityError):
        Namespace.from_json(data.replace(*change))


def test_another_version_is_named() -> None:
    older = b'{"format_version":0,"k_dim":8,"v_dim":6}'
    with pytest.raises(IdentityError, match="format version 0: this kvlingua reads 1"):
        Namespace.from_json(older)


@pytest.mark.parametrize("data", [b"", b"[]", b"null", b'"namespace"', b"\xff", b"{}", b"[" * 9999])
def test_what_is_no_namespace_is_refused(data: bytes) -> None:
    with pytest.raises(IdentityError, match="not a namespace"):
        Namespace.from_json(data)
