"""Layouts as data: what a spec means in numbers, and which specs and numbers are refused."""

from __future__ import annotations

import mmap

import numpy as np
import pytest
import torch

from kvlingua.layouts import FORMATS, Buffer, Extent, Geometry, Layout, LayoutError, Plane, format

MODEL = Geometry.kv(4, 6, 32, "bfloat16", v_dim=16)
PART = Extent(2, 5, 1, 3)  # 3 heads, 2 layers


def memory(nbytes: int, count: int = 1) -> list[Buffer]:
    return [Buffer.of(bytearray(nbytes)) for _ in range(count)]


def test_canonical_is_the_documented_formula() -> None:
    """docs/format/layout.md: K [head, layer, token, dim] of a chunk, then V."""
    (buffer,) = memory(2 * 3 * 2 * 64 * 48 * 2)
    pool = format("canonical").pool(MODEL, PART, page=64, blocks=2, buffers=[buffer])
    k, v = pool.planes
    assert (k.dim, k.token, k.head, k.block) == (2, 64, 2 * 64 * 64, 3 * 2 * 64 * 48 * 2)
    assert k.bases == (buffer.pointer, buffer.pointer + 64 * 64)
    assert (v.dim, v.token, v.head, v.block) == (2, 32, 2 * 64 * 32, k.block)
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


def test_the_joined_spans_hold_what_is_reachable() -> None:
    buffers = memory(4 * 3 * 48 * 2, 2)
    pool = format("vllm_lbnhc").pool(MODEL, PART, page=4, blocks=1, buffers=buffers)
    assert sorted(pool.spans) == sorted((buffer.pointer, buffer.end) for buffer in buffers)


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        ("layer | block head | token (k: dim)", "once"),
        ("layer | block head token", "one of both"),
        ("layer plane | block head token (k: dim) (v: dim)", "one of both"),
        ("block plane | head token dim layer", "separate allocations"),
        ("layer plane | block head token", "lacks dim"),
        ("layer | block head (k: dim token) (v: token)", "plane v lacks dim"),
        ("layer plane | block head head token dim", "twice"),
        ("layer | block head token (k: dim) (k: dim)", "two regions"),
        ("layer plane | block head token width", "isn't known"),
        ("layer plane | block head dim/8 token dim%8", "isn't known"),
        ("layer | (k: block head token dim) (v: block head token dim) block", "right of a region"),
        ("layer | block head token (k dim)", "parentheses"),
        ("layer layer plane | head token dim", "twice"),
        ("plane | plane layer head token dim", "twice"),
        ("", "one of both"),
    ],
)
def test_a_spec_that_makes_no_sense(spec: str, why: str) -> None:
    with pytest.raises(LayoutError, match=why):
        Layout("bad", spec)


def test_an_unknown_format_names_the_known_ones() -> None:
    with pytest.raises(LayoutError, match="vllm_cpu_vec16"):
        format("vllm_amx")
    assert len(FORMATS) == 8


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
        ({"page": 0}, "at least 1"),
        ({"page": -4}, "at least 1"),
        ({"blocks": 0}, "at least 1"),
        ({"blocks": 4}, "reaches 4608 bytes into its buffer, which has 3456"),
        ({"extent": Extent(4, 7, 1, 3)}, "isn't part of the model"),
        ({"extent": Extent(2, 5, 3, 5)}, "isn't part of the model"),
        ({"geometry": Geometry(4, 6, (Plane("latent", 32),), "bfloat16")}, r"has planes \['k', 'v'\]"),
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
    with pytest.raises(LayoutError, match="no multiple of 2"):
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
    assert MODEL.token_bytes(PART) == 3 * 2 * 48 * 2


@pytest.mark.parametrize(
    "make",
    [
        lambda: Geometry.kv(0, 1, 8, "float32"),
        lambda: Geometry.kv(1, 0, 8, "float32"),
        lambda: Geometry.kv(1, 1, 0, "float32"),
        lambda: Geometry.kv(1, 1, 8, "float8_e4m3fn"),
        lambda: Geometry(1, 1, (), "float32"),
        lambda: Geometry(1, 1, (Plane("k", 8), Plane("k", 8)), "float32"),
        lambda: Plane("k v", 8),
    ],
)
def test_impossible_models(make: object) -> None:
    with pytest.raises(LayoutError):
        make()  # type: ignore[operator]
