"""Layouts as data: what a spec means in numbers, and which specs and numbers are refused."""

from __future__ import annotations

import mmap
from math import prod
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kvlingua.layouts import FORMATS, Buffer, Extent, Geometry, Layout, LayoutError, Plane, Rope, format

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


def test_given_strides_are_used() -> None:
    buffers = memory(10_000, 2)
    pool = format("vllm_lbhnc").pool(MODEL, PART, page=4, blocks=3, buffers=buffers, strides={"block": 3000})
    assert [plane.block for plane in pool.planes] == [3000, 3000]
    assert pool.planes[1].bases[0] == buffers[0].pointer + 64


def test_a_plane_may_have_strides_of_its_own() -> None:
    strides = {"k.head": 4096, "v.head": 2048}
    pool = format("hf").pool(MODEL, PART, page=5, blocks=1, buffers=memory(20_000, 4), strides=strides)
    assert [plane.head for plane in pool.planes] == [4096, 2048]


def test_the_stride_of_a_single_thing_is_not_looked_at() -> None:
    """Torch gives an axis of size 1 any stride it likes."""
    model = Geometry.kv(1, 1, 8, "float32")
    pool = format("hf").pool(model, model.full, page=3, blocks=1, buffers=memory(96, 2), strides={"head": 1})
    assert pool.planes[0].head == 96


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


def test_scales_that_lie_elsewhere() -> None:
    """An engine's static scales: memory of their own, per layer one number or one per head, only read."""
    for per, heads in (("head", 3), ("tensor", 1)):
        model = Geometry.kv(2, 3, 16, "float8_e4m3fn", scales=per)  # type: ignore[arg-type]
        scales = {name: memory(4 * heads, 2) for name in ("k_scale", "v_scale")}
        pool = format("hf").pool(model, model.full, page=4, blocks=1, buffers=memory(192, 4), scales=scales)
        assert pool.fixed == {"k_scale", "v_scale"}
        assert pool.planes[3].bases == tuple(buffer.pointer for buffer in scales["v_scale"])
        assert (pool.planes[3].head, pool.planes[3].block) == (4 if heads > 1 else 0, 0)
        assert scales["k_scale"][1].pointer in pool.memory


@pytest.mark.parametrize(
    ("scales", "why"),
    [
        ({"k_scale": [4, 4]}, "needs 6 buffers"),
        ({"k_scale": [4], "v_scale": [4, 4]}, "plane k_scale needs a buffer per layer, so 2, got 1"),
        ({"k_scale": [4, 2], "v_scale": [4, 4]}, "reaches 4 bytes into its buffer, which has 2"),
        ({"k": [4, 4], "v_scale": [4, 4]}, "plane k has a value per token"),
        ({"k_scale": [4, 4], "v_scale": [4, 4], "rope_scale": [4, 4]}, "there is no plane 'rope_scale'"),
    ],
)
def test_static_scales_that_do_not_fit(scales: dict[str, list[int]], why: str) -> None:
    model = Geometry.kv(2, 3, 16, "float8_e4m3fn", scales="tensor")
    given = {name: [memory(size)[0] for size in sizes] for name, sizes in scales.items()}
    with pytest.raises(LayoutError, match=why):
        format("hf").pool(model, model.full, page=4, blocks=1, buffers=memory(192, 4), scales=given)


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


def test_equal_numbers_are_one_arrangement() -> None:
    """Plans are remembered by it: memory of the same form at another address costs no new plan."""
    one, other = (format("vllm_lbhnc").pool(MODEL, PART, page=4, blocks=1, buffers=memory(1152, 2)) for _ in range(2))
    assert one.arrangement is other.arrangement
    assert one.planes != other.planes


def test_a_pools_memory_is_its_buffers_those_that_overlap_joined() -> None:
    whole = Buffer.of(bytearray(400))
    parts = [Buffer(whole.pointer + at, 400 - at, whole.owner) for at in (0, 96, 192, 288)]
    model = Geometry.kv(2, 3, 8, "bfloat16")
    pool = format("sglang_nhd").pool(model, model.full, page=2, blocks=1, buffers=parts)
    assert list(pool.memory) == [whole.pointer, whole.end]
    apart = memory(96, 4)
    pool = format("sglang_nhd").pool(model, model.full, page=2, blocks=1, buffers=apart)
    assert list(pool.memory) == sorted(end for buffer in apart for end in (buffer.pointer, buffer.end))


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
    ("change", "why"),
    [
        ({"strides": {"block": 100}}, "too small"),
        ({"strides": {"token": 2}}, "too small"),
        ({"strides": {"head": -384}}, "too small"),
        ({"strides": {"head": 0}}, "too small"),
        ({"strides": {"token": 97}}, "multiple of 2"),
        ({"strides": {"block": 1 << 80}}, "reaches"),
        ({"strides": {"layer": 4}}, "no stride 'layer'"),
        ({"strides": {"k.block": 4}}, "no stride 'k.block'"),
        ({"strides": {"block": 3.5}}, "whole number"),
        ({"strides": {"block": True}}, "whole number"),
        ({"page": 4.0}, "whole number"),
        ({"blocks": True}, "whole number"),
        ({"page": 0}, "at least 1"),
        ({"page": -4}, "at least 1"),
        ({"blocks": 0}, "at least 1"),
        ({"blocks": 4}, "reaches 4608 bytes into its buffer, which has 3456"),
        ({"extent": Extent(4, 7, 1, 3)}, "isn't part of the model"),
        ({"extent": Extent(2, 5, 3, 5)}, "isn't part of the model"),
        ({"geometry": Geometry.mla(4, 48, 16, "bfloat16"), "extent": Extent(0, 1, 1, 3)}, r"has planes \['k', 'v'\]"),
        ({"geometry": Geometry.kv(4, 6, 32, "float8_e5m2", scales="head")}, r"the model has \['k', 'v', 'k_scale'"),
    ],
)
def test_numbers_that_do_not_fit(change: dict[str, object], why: str) -> None:
    fitting: dict[str, object] = {"geometry": MODEL, "extent": PART, "page": 4, "blocks": 3}
    buffers = memory(3 * 4 * 3 * 48 * 2, 2)
    make = format("vllm_lbhnc").pool
    make(**fitting, buffers=buffers)  # type: ignore[arg-type]
    with pytest.raises(LayoutError, match=why):
        make(**{**fitting, **change}, buffers=buffers)  # type: ignore[arg-type]


def test_buffers_that_do_not_fit() -> None:
    make = format("vllm_lbhnc").pool
    good = memory(4 * 3 * 48 * 2, 2)
    with pytest.raises(LayoutError, match=r"needs 2 buffers \(2 layers\), got 1"):
        make(MODEL, PART, page=4, blocks=1, buffers=good[:1])
    with pytest.raises(LayoutError, match="given twice"):
        make(MODEL, PART, page=4, blocks=1, buffers=[good[0], good[0]])
    whole = memory(2 * 4 * 3 * 48 * 2, 1)[0]
    half, middle = whole.nbytes // 2, Buffer(whole.pointer + whole.nbytes // 2 - 96, whole.nbytes // 2, whole.owner)
    with pytest.raises(LayoutError, match="two buffers overlap"):
        make(MODEL, PART, page=4, blocks=1, buffers=[middle, whole])
    make(
        MODEL, PART, page=4, blocks=1, buffers=[Buffer(whole.pointer + half, half, whole.owner), whole]
    )  # side by side
    with pytest.raises(LayoutError, match="no multiple of the 2 bytes"):
        make(MODEL, PART, page=4, blocks=1, buffers=[good[0], Buffer(good[1].pointer + 1, good[1].nbytes - 1)])
    with pytest.raises(LayoutError, match="different devices"):
        make(MODEL, PART, page=4, blocks=1, buffers=[good[0], Buffer(good[1].pointer, good[1].nbytes, device="cuda")])
    with pytest.raises(LayoutError, match="no block axis"):
        format("hf").pool(MODEL, PART, page=4, blocks=2, buffers=memory(10_000, 4))


def test_memory_of_python_objects() -> None:
    for obj in (bytearray(16), memoryview(bytearray(16)), mmap.mmap(-1, 16), np.zeros(4, dtype=np.float32)):
        assert Buffer.of(obj).nbytes == 16
    assert Buffer.of(bytearray()).nbytes == 0
    for bad in (b"read only", memoryview(bytearray(8))[::2], "text", 7, None):
        with pytest.raises(LayoutError):
            Buffer.of(bad)
    held = bytearray(16)
    buffer = Buffer.of(held)
    with pytest.raises(BufferError):
        held.append(1)
    assert buffer.end == buffer.pointer + 16


def test_memory_of_a_tensor_reaches_to_the_end_of_its_storage() -> None:
    whole = torch.zeros(2, 8, dtype=torch.float32)
    assert Buffer.of(whole[1]) == Buffer(whole[1].data_ptr(), 32)
    assert Buffer.of(whole[0]) == Buffer(whole.data_ptr(), 64)
    assert Buffer.of(torch.zeros(0)).nbytes == 0
    assert Buffer.of(torch.zeros(4, device="meta")).device == "meta"


@pytest.mark.parametrize("bad", [(0, 0, 0, 1), (-1, 1, 0, 1), (0, 1, 2, 2), (2, 1, 0, 1)])
def test_empty_and_negative_extents(bad: tuple[int, int, int, int]) -> None:
    with pytest.raises(LayoutError, match="at least one head and one layer"):
        Extent(*bad)


def test_extents() -> None:
    whole, part = Extent(0, 8, 0, 4), Extent(2, 4, 1, 2)
    assert whole.contains(part)
    assert not part.contains(whole)
    assert part.intersect(Extent(3, 8, 0, 4)) == Extent(3, 4, 1, 2)
    assert part.intersect(Extent(4, 8, 0, 4)) is None
    assert (part.heads, part.layers) == (2, 1)
    assert MODEL.block_bytes(PART, 5) == 5 * 3 * 2 * 48 * 2


@pytest.mark.parametrize(
    "make",
    [
        lambda: Geometry.kv(0, 1, 8, "float32"),
        lambda: Geometry.kv(1, 0, 8, "float32"),
        lambda: Geometry.kv(1, 1, 0, "float32"),
        lambda: Geometry.kv(1, 1, 8, "float8"),
        lambda: Geometry.kv(1, 1, 1 << 17, "float16"),
        lambda: Geometry.kv(1, 1, 8, "float16", scales="head"),
        lambda: Geometry.kv(1, 1, 8, "float8_e5m2", scales="layer"),  # type: ignore[arg-type]
        lambda: Geometry.kv(1, 1, 8, "float16", rope=Rope("half", 10)),
        lambda: Geometry(1, 1, ()),
        lambda: Geometry(1, 1, (Plane("k", 8, "float32"), Plane("k", 8, "float32"))),
        lambda: Geometry(1, 1, (Plane("k", 8, "float32"), Plane("v", 8, "float16"))),
        lambda: Geometry(1, 1, (Plane("k_scale", 8, "float32"),)),
        lambda: Geometry(1, 1, (Plane("k", 8, "float8_e5m2"), Plane("v_scale", 1, "float32"))),
        lambda: Geometry(1, 1, (Plane("k", 8, "float8_e5m2"), Plane("k_scale", 1, "float16"))),
        lambda: Geometry(1, 1, (Plane("k", 8, "float8_e5m2"), Plane("k_scale", 2, "float32"))),
        lambda: Plane("k v", 8, "float32"),
        lambda: Plane("k", 8, "float32", "head"),
        lambda: Plane("k_scale", 8, "float32", rope=Rope("half", 8)),
        lambda: Rope("half", 0),
        lambda: Rope("half", 7),
        lambda: Rope("none", 8),
        lambda: Rope("half", -2),
        lambda: Rope("neox", 8),  # type: ignore[arg-type]
    ],
)
def test_impossible_models(make: object) -> None:
    with pytest.raises(LayoutError):
        make()  # type: ignore[operator]
