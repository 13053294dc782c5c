"""Layouts as data: what a spec means in numbers, and which specs are refused."""

from __future__ import annotations

from math import prod
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvlingua.layouts import FORMATS, Buffer, Extent, Geometry, Layout, LayoutError, Rope, format

MODEL = Geometry.kv(4, 6, 32, "bfloat16", v_dim=16)
PART = Extent(2, 5, 1, 3)  # 3 heads, 2 layers


def memory(nbytes: int, count: int = 1) -> list[Buffer]:
    return [Buffer.of(bytearray(nbytes)) for _ in range(count)]


def test_canonical_is_the_documented_formula() -> None:
    """docs/format/layout.md: K [head, layer, token, dim] of a chunk, then V."""
    (buffer,) = memory(2 * 3 * 2 * 64 * 48 * 2)
    pool = format("canonical").pool(MODEL, PART, page=64, blocks=2, buffers=[buffer])
    k, v = pool.planes
    assert (k.dim, k.token, k.head, k.block) == (((32, 2),), ((64, 64),), 2 * 64 * 64, 3 * 2 * 64 * 48 * 2)
    assert k.bases == (buffer.pointer, buffer.pointer + 64 * 64)
    assert (v.dim, v.token, v.head, v.block) == (((16, 2),), ((64, 32),), 2 * 64 * 32, k.block)
    assert v.bases[0] == buffer.pointer + 3 * 2 * 64 * 32 * 2
    assert v.bases[1] == v.bases[0] + 64 * 32


def test_buffers_come_in_the_order_of_the_spec() -> None:
    model = Geometry.kv(2, 1, 8, "float32")
    buffers = memory(32, 4)
    layer_first = Layout("a", "layer plane | head token dim").pool(model, model.full, page=1, blocks=1, buffers=buffers)
    plane_first = Layout("b", "plane layer | head token dim").pool(model, model.full, page=1, blocks=1, buffers=buffers)
    at = [buffer.pointer for buffer in buffers]
    assert [plane.bases for plane in layer_first.planes] == [(at[0], at[2]), (at[1], at[3])]
    assert [plane.bases for plane in plane_first.planes] == [(at[0], at[1]), (at[2], at[3])]


def test_tiles_are_digits() -> None:
    """AMD's tiled K [H, D/x, N, x] and V [H, N/x, D, x], x numbers in 16 bytes, each plane its own allocation."""
    spec = "layer plane | block head (k: dim/16B token dim%16B) (v: token/16B dim token%16B)"
    model = Geometry.kv(2, 3, 32, "bfloat16", v_dim=16)
    pool = Layout("tiles", spec).pool(model, model.full, page=24, blocks=2, buffers=memory(2 * 3 * 24 * 32 * 2, 4))
    k, v = pool.planes
    assert (k.dim, k.token) == (((4, 24 * 16), (8, 2)), ((24, 16),))
    assert (v.dim, v.token) == (((16, 16),), ((3, 16 * 16), (8, 2)))
    assert (k.head, v.head, k.block, v.block) == (24 * 64, 24 * 32, 3 * 24 * 64, 3 * 24 * 32)
    eight = Geometry.kv(2, 3, 32, "float8_e5m2", v_dim=16)
    pool = Layout("tiles", spec).pool(eight, eight.full, page=32, blocks=1, buffers=memory(3 * 32 * 32, 4))
    assert (pool.planes[0].dim, pool.planes[1].token) == (((2, 32 * 16), (16, 1)), ((2, 16 * 16), (16, 1)))


@pytest.mark.parametrize(
    ("page", "dim", "dtype", "why"),
    [
        (24, 36, "bfloat16", "tiles of 8 .dim%16B. don't divide 36 dims"),
        (20, 32, "bfloat16", "plane v: tiles of 8 .token%16B. don't divide 20 tokens"),
        (24, 32, "float8_e5m2", "tiles of 16 .token%16B. don't divide 24 tokens"),
    ],
)
def test_tiles_that_do_not_divide(page: int, dim: int, dtype: str, why: str) -> None:
    spec = "layer plane | block head (k: dim/16B token dim%16B) (v: token/16B dim token%16B)"
    model = Geometry.kv(1, 1, dim, dtype)
    with pytest.raises(LayoutError, match=why):
        Layout("tiles", spec).pool(model, model.full, page=page, blocks=1, buffers=memory(9999, 2))


def test_a_tile_in_bytes_needs_elements_that_fill_it() -> None:
    model = Geometry.kv(1, 1, 8, "float32")
    row = Layout("tiles", "layer plane | head token dim/2B dim%2B")
    with pytest.raises(LayoutError, match="elements that fill 2 bytes, not of 4 bytes"):
        row.pool(model, model.full, page=1, blocks=1, buffers=memory(32, 2))


def test_strides_of_tiles_go_by_their_words() -> None:
    model = Geometry.kv(1, 1, 32, "bfloat16")
    row = Layout("tiles", "layer plane | block head (k: dim/8 token dim%8) (v: token dim)")
    buffers = memory(9000, 2)
    strides = {"dim/8": 100, "k.token": 20, "v.block": 1000}
    pool = row.pool(model, model.full, page=4, blocks=2, buffers=buffers, strides=strides)
    assert (pool.planes[0].dim, pool.planes[0].token) == (((4, 100), (8, 2)), ((4, 20),))
    assert pool.planes[0].block == 400
    assert pool.planes[1].block == 1000
    with pytest.raises(LayoutError, match=r"no stride 'v.dim/8'; it has .*dim%8.*k.dim/8.*v.token"):
        row.pool(model, model.full, page=4, blocks=2, buffers=buffers, strides={"v.dim/8": 100})


def test_a_star_is_every_plane_without_a_region_of_its_own() -> None:
    model = Geometry.kv(2, 3, 16, "float8_e4m3fn", scales="token")
    (buffer,) = memory(4096)
    star = Layout("star", "| (*: head layer token dim) (k: token head layer dim)")
    pool = star.pool(model, model.full, page=4, blocks=1, buffers=[buffer])
    at = {plane.name: plane.bases[0] - buffer.pointer for plane in pool.planes}
    size = 2 * 3 * 4
    assert at == {"v": 0, "k_scale": 16 * size, "v_scale": 20 * size, "k": 24 * size}
    assert pool.planes[0].token == ((4, 3 * 2 * 16),)
    assert star.axes("v") == ("head", "layer", "token", "dim")
    assert star.axes("k") == ("token", "head", "layer", "dim")
    with pytest.raises(LayoutError, match="none called 'latent'"):
        format("vllm_lbhnc").axes("latent")


@pytest.mark.parametrize(("per", "heads", "tokens"), [("token", 3, 4), ("head", 3, 1), ("tensor", 1, 1)])
def test_scales_take_the_room_of_what_they_are_per(
    per: Literal["token", "head", "tensor"], heads: int, tokens: int
) -> None:
    """canonical: k_scale of a chunk is [heads or 1, layers, tokens or 1, 1]."""
    model = Geometry.kv(2, 3, 16, "float8_e4m3fn", scales=per)
    assert model.elements(model.plane("k_scale"), model.full, 4) == heads * 2 * tokens
    nbytes = model.block_bytes(model.full, 4)
    assert nbytes == 2 * (3 * 2 * 4 * 16 + 4 * heads * 2 * tokens)
    (buffer,) = memory(2 * nbytes)
    pool = format("canonical").pool(model, model.full, page=4, blocks=2, buffers=[buffer])
    scale = pool.planes[2]
    assert scale.bases == (buffer.pointer + 768, buffer.pointer + 768 + 4 * tokens)
    assert (scale.block, scale.head, scale.token) == (
        nbytes,
        2 * tokens * 4 if heads > 1 else 0,
        ((4, 4 if tokens > 1 else 0),),
    )
    assert not pool.fixed


def test_a_scale_per_head_has_no_place_between_tokens() -> None:
    model = Geometry.kv(1, 2, 16, "float8_e4m3fn", scales="head")
    row = Layout("inline", "layer | block head token (k: dim) (v: dim) (k_scale: dim) (v_scale: dim)")
    with pytest.raises(LayoutError, match="plane k_scale has one value per head: it can't lie inside 'token'"):
        row.pool(model, model.full, page=4, blocks=1, buffers=memory(999))
    per_token = Geometry.kv(1, 2, 16, "float8_e4m3fn", scales="token")
    assert row.pool(per_token, per_token.full, page=4, blocks=1, buffers=memory(320)).planes[3].token == ((4, 40),)
    odd = Geometry.kv(1, 2, 15, "float8_e4m3fn", scales="token")
    with pytest.raises(LayoutError, match="plane k_scale would begin 30 bytes in, no multiple of 4"):
        row.pool(odd, odd.full, page=4, blocks=1, buffers=memory(999))
    with pytest.raises(LayoutError, match="a stride of 42 bytes along token isn't a multiple of 4"):
        row.pool(per_token, per_token.full, page=4, blocks=1, buffers=memory(999), strides={"token": 42})


def test_latent_attention() -> None:
    model = Geometry.mla(2, 512, 64, "bfloat16", rope=Rope("interleaved", 64))
    assert [(plane.name, plane.width) for plane in model.planes] == [("latent", 512), ("rope", 64)]
    assert (model.kv_heads, model.dtype, model.block_bytes(model.full, 16)) == (1, "bfloat16", 2 * 16 * 1152)
    row = Layout("mla", "layer | block head token (latent: dim) (rope: dim)")
    pool = row.pool(model, model.full, page=16, blocks=1, buffers=memory(16 * 1152, 2))
    assert pool.planes[1].bases[0] == pool.planes[0].bases[0] + 1024


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        ("layer | block head | token (k: dim)", "once"),
        ("layer | block head token", "or both"),
        ("layer | block head token dim (k:) (v:)", "dim stands in the parentheses"),
        ("block plane | head token dim layer", "separate allocations"),
        ("layer plane | block head token", "lacks dim"),
        ("layer | block head (k: dim token) (v: token)", "plane v: it lacks dim"),
        ("layer plane | block head head token dim", "twice"),
        ("layer | block head token (k: dim) (k: dim)", "two regions"),
        ("layer plane | block head token width", "isn't known"),
        ("layer plane | block head dim/8 token dim%16", "stands whole, or once as dim/n and once as dim%n"),
        ("layer plane | block head dim/8 token dim%8B", "stands whole"),
        ("layer plane | block head dim/8 token dim/16 dim%8", "stands whole"),
        ("layer plane | block head dim/8 token dim", "stands whole"),
        ("layer plane | block head dim%8 token", "stands whole"),
        ("layer plane | block head dim/0 token dim%0", "isn't known"),
        ("layer plane | block head dim/-8 token dim%-8", "isn't known"),
        ("layer plane | block head dim/1234567 token dim%1234567", "isn't known"),
        ("layer plane | block head/2 token head%2 dim", "only token and dim can be split"),
        ("layer plane | block head dim/8 token dim%8 dim%8", "twice"),
        ("layer | block head token (*: dim) (*: dim)", "two regions"),
        ("layer | block head token (k: dim) (*:)", r"plane \*: it lacks dim"),
        ("layer | block head token (k v: dim)", "parentheses"),
        ("layer | (k: block head token dim) (v: block head token dim) block", "right of a region"),
        ("layer | block head token (k dim)", "parentheses"),
        ("layer layer plane | head token dim", "twice"),
        ("plane | plane layer head token dim", r"plane stands left of '\|'"),
        ("", "or both"),
    ],
)
def test_a_spec_that_makes_no_sense(spec: str, why: str) -> None:
    with pytest.raises(LayoutError, match=why):
        Layout("bad", spec)


WORDS = "layer plane | block head token dim dim/4 dim%4 token/2 token%2 token/8B (k: (v: (*: ) dim) : * % x".split()


@settings(max_examples=200)
@given(row=st.sampled_from(list(FORMATS.values())), data=st.data(), page=st.integers(1, 8))
def test_any_words_are_a_layout_or_refused(row: Layout, data: st.DataObject, page: int) -> None:
    """Known rows with words taken out, put in and changed."""
    words = row.spec.split()
    for _ in range(data.draw(st.integers(0, 3))):
        at = data.draw(st.integers(0, len(words)))
        words[at : at + data.draw(st.integers(0, 1))] = data.draw(st.lists(st.sampled_from(WORDS), max_size=1))
    model = Geometry.kv(2, 2, 8, "float16")
    try:
        changed = Layout("changed", " ".join(words))
        buffers = memory(4096, 2 ** len(changed.separate))
        pool = changed.pool(model, model.full, page=page, blocks=1, buffers=buffers)
    except LayoutError:
        return
    for plane, strides in zip(pool.planes, pool.arrangement.planes, strict=True):
        assert strides.offset + strides.reach <= strides.span <= 4096
        assert [prod(size for size, _ in digits) for digits in (plane.token, plane.dim)] == [page, 8]


def test_an_unknown_format_names_the_known_ones() -> None:
    with pytest.raises(LayoutError, match="vllm_cpu_vec16"):
        format("vllm_amx")


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("vllm_lbnch", r"isn't known; did you mean .*'vllm_lbnhc'"),
        ("HF_Static", "did you mean 'hf_static'"),
        ("nvfp4", "layout 'vllm_nvfp4' can't be described.*swizzled"),
        ("fp8_ds_mla", "layout 'vllm_fp8_ds_mla' can't be described.*656 bytes"),
        ("vllm_nvpf4", "did you mean 'vllm_nvfp4'"),
        (None, "asked for by its name"),
    ],
)
def test_a_format_that_was_meant_is_named(name: str, why: str) -> None:
    with pytest.raises(LayoutError, match=why):
        format(name)
