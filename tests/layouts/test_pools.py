"""What a pool is made of: the model, its part, strides and memory, and which of them are refused."""

from __future__ import annotations

import mmap
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from kvlingua.layouts import Buffer, Extent, Geometry, LayoutError, Plane, Rope, format

MODEL = Geometry.kv(4, 6, 32, "bfloat16", v_dim=16)
PART = Extent(2, 5, 1, 3)  # 3 heads, 2 layers


def memory(nbytes: int, count: int = 1) -> list[Buffer]:
    return [Buffer.of(bytearray(nbytes)) for _ in range(count)]


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
    closed = mmap.mmap(-1, 16)
    closed.close()
    for bad in (closed, np.zeros(2, dtype="datetime64[s]"), bytearray, np.ndarray):
        with pytest.raises(LayoutError, match="expected a torch tensor or a writable buffer"):
            Buffer.of(bad)


@pytest.mark.parametrize(
    "references", [np.array([None] * 200, dtype=object), np.zeros(4, dtype=[("n", "i4"), ("o", object)])]
)
def test_memory_of_references_is_refused(references: object) -> None:
    """What is written over them is taken for addresses of objects later on."""
    with pytest.raises(LayoutError, match="holds references to Python objects"):
        Buffer.of(references)
    assert Buffer.of(np.zeros(4, dtype=[("O", "i4")])).nbytes == 16  # a name is no type


def test_memory_of_a_tensor_reaches_to_the_end_of_its_storage() -> None:
    whole = torch.zeros(2, 8, dtype=torch.float32)
    assert Buffer.of(whole[1]) == Buffer(whole[1].data_ptr(), 32)
    assert Buffer.of(whole[0]) == Buffer(whole.data_ptr(), 64)
    assert Buffer.of(torch.zeros(0)).nbytes == 0


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: torch.zeros(4, dtype=torch.complex64).conj(), "resolve_conj"),
        (lambda: torch.zeros(4, dtype=torch.complex64).conj().imag, "resolve_neg"),
        (lambda: torch.zeros(4, 4).to_sparse(), r"of layout sparse_coo: make it dense with \.to_dense"),
        (lambda: torch.zeros(4, 4).to_sparse_csr(), "of layout sparse_csr"),
        (lambda: torch.quantize_per_tensor(torch.zeros(4), 0.1, 0, torch.qint8), "quantised"),
        (lambda: torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]), "nested"),
        (lambda: torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)], layout=torch.jagged), "nested"),
        (lambda: torch.zeros(4, device="meta"), "device meta"),
        (lambda: torch.Tensor, "got the class Tensor"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_tensors_whose_memory_is_not_their_numbers(make: Callable[[], object], why: str) -> None:
    with pytest.raises(LayoutError, match=why):
        Buffer.of(make())


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


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: Rope("half", 64.0), r"whole number, not 64\.0"),  # type: ignore[arg-type]
        (lambda: Rope("half", "64"), "whole number, not '64'"),  # type: ignore[arg-type]
        (lambda: Geometry.kv(1, 1, True, "float32"), "elements wide, not True"),
        (lambda: Geometry.kv("4", 1, 8, "float32"), "layers is a whole number from 1 to 65536, not '4'"),  # type: ignore[arg-type]
        (lambda: Geometry.kv(True, 1, 8, "float32"), "layers is a whole number from 1 to 65536, not True"),
        (lambda: Geometry.kv(65537, 1, 8, "float32"), "layers is a whole number from 1 to 65536, not 65537"),
        (lambda: Geometry.kv(1, 1 << 40, 8, "float32"), "kv_heads is a whole number from 1 to 65536"),
        (lambda: Geometry.kv(1, 1, 8, torch.bfloat16), "write 'bfloat16' instead of torch.bfloat16"),  # type: ignore[arg-type]
        (lambda: Geometry.kv(1, 1, 8, np.float16), "write 'float16' instead of"),  # type: ignore[arg-type]
        (lambda: Geometry.kv(1, 1, 8, ["float32"]), "isn't known; known are"),  # type: ignore[arg-type]
        (lambda: Geometry(1, 1, {"k": Plane("k", 8, "float32")}), "tuple of Plane"),  # type: ignore[arg-type]
        (lambda: Geometry(1, 1, ("k",)), "tuple of Plane"),  # type: ignore[arg-type]
        (lambda: Extent(True, 2, 0, 1), "four whole numbers"),
    ],
)
def test_models_in_other_words(make: Callable[[], object], why: str) -> None:
    with pytest.raises(LayoutError, match=why):
        make()


def test_numpys_numbers_become_ints() -> None:
    one, two, eight = np.int64(1), np.int32(2), np.uint8(8)
    model: Any = Geometry(two, one, [Plane("k", eight, "float32", rope=Rope("half", eight))])  # type: ignore[arg-type]
    assert model == Geometry(2, 1, (Plane("k", 8, "float32", rope=Rope("half", 8)),))
    assert hash(model)
    extent: Any = Extent(one, two, one, two)  # type: ignore[arg-type]
    kept = (model.layers, model.kv_heads, model.planes[0].width, model.planes[0].rope.width, extent.head_start)
    assert {type(number) for number in kept} == {int}
    pool = format("canonical").pool(model, model.full, page=two, blocks=one, buffers=memory(2 * 2 * 8 * 4, 1))  # type: ignore[arg-type]
    assert (type(pool.page), type(pool.blocks)) == (int, int)
