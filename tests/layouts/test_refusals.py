"""Copies that can't be right are refused before a byte is written."""

from __future__ import annotations

from array import array
from typing import Any

import numpy as np
import pytest
import torch

from kvlingua.layouts import Buffer, Extent, Geometry, LayoutError, Pool, View, convert, format, native
from kvlingua.layouts.convert import Backend
from kvlingua.layouts.plan import make_plan

MODEL = Geometry.kv(2, 4, 8, "float32")
BLOCK = 4 * 4 * 16 * 4  # bytes of one layer's block of 4 tokens


def pool(model: Geometry = MODEL, extent: Extent | None = None, fill: int = 0) -> Pool:
    """5 blocks of 4 tokens."""
    extent = extent or model.full
    buffers = [Buffer.of(bytearray([fill] * (5 * BLOCK))) for _ in range(extent.layers)]
    return format("vllm_lbhnc").pool(model, extent, page=4, blocks=5, buffers=buffers)


def contents(of: Pool) -> list[bytes]:
    return [bytes(buffer.owner) for buffer in of.buffers]  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("table", "start", "stop", "why"),
    [
        ([0, 1], 0, 9, "need 3 blocks"),
        ([], 0, 1, "need 1 blocks"),
        ([0, 1], -1, 4, "not a range"),
        ([0, 1], 5, 4, "not a range"),
        ([0, 1 << 70], 0, 8, "sequence of integers"),
        ([0, "a"], 0, 8, "sequence of integers"),
        ([0.0, 1.0], 0, 8, "sequence of integers"),
        (torch.tensor([0.0, 1.0]), 0, 8, "sequence of integers"),
        (torch.tensor([[0], [1]]), 0, 8, "sequence of integers"),
        (7, 0, 8, "sequence of integers"),
        ([True, False], 0, 8, "it holds True or False"),
        ([0, True], 0, 8, "it holds True or False"),
        (torch.tensor([True, False]), 0, 8, "it holds True or False"),
        (np.array([True, False]), 0, 8, "it holds True or False"),
        (np.array([0, True], dtype=object), 0, 8, "it holds True or False"),
        ({0, 1}, 0, 8, "it is a set"),
        ({0: 1, 1: 0}, 0, 8, "it is a dict"),
        (b"\0\1", 0, 8, "it is a bytes"),
        (bytes(16), 0, 8, "it is a bytes"),
        (bytearray(16), 0, 8, "it is a bytearray"),
        (np.array(b"12345678"), 0, 8, "sequence of integers"),
        ("01", 0, 8, "it is a str"),
        (iter([0, 1]), 0, 8, "it is a list_iterator"),
        (torch.zeros(2, dtype=torch.int64, device="meta"), 0, 8, "sequence of integers"),
        ([0, 1], True, 4, "not a range"),
        ([0, 1], "0", 4, "not a range"),
    ],
)
def test_block_tables(table: list[int], start: int, stop: int, why: str) -> None:
    with pytest.raises(LayoutError, match=why):
        pool().view(table, start, stop)


@pytest.mark.parametrize("backend", ["native", "torch"])
@pytest.mark.parametrize("block", [5, -1, 1 << 62, -(1 << 63)])
def test_blocks_that_are_not_there(block: int, backend: str) -> None:
    """Both backends find them before anything is written, and name the block."""
    good, bad = [2, 0, 4], [2, 0, block]
    why = rf"names block {block}; the pool has blocks 0 to 4"
    refused(pool(fill=7).view(bad, 4, 12), pool().view(good, 4, 12), f"source's block table {why}", backend=backend)
    refused(pool(fill=7).view(good, 4, 12), pool().view(bad, 4, 12), f"target's block table {why}", backend=backend)


def test_only_the_touched_part_of_a_table_is_looked_at() -> None:
    view = pool().view([-1, 3, 4, 99], 5, 11)
    assert list(view.blocks) == [3, 4]
    assert view.tokens == 6


@pytest.mark.parametrize("make", [list, tuple, np.array, torch.tensor, lambda t: np.array(t, np.int32)])
def test_tables_of_many_kinds(make: object) -> None:
    assert list(pool().view(make([4, 0, 2]), 0, 12).table) == [4, 0, 2]  # type: ignore[operator]


def test_positions_may_be_numpys() -> None:
    view = pool().view(range(5), np.int64(3), np.int32(9))  # type: ignore[arg-type]
    assert (type(view.start), type(view.stop)) == (int, int)
    assert (view.start, view.stop) == (3, 9)


def test_an_array_of_int64_is_not_copied() -> None:
    table = array("q", [1, 2])
    assert pool().view(table, 0, 8).table is table


def refused(source: View, target: View, why: str, **options: object) -> None:
    before = contents(target.pool) if target.pool.device == "cpu" else []
    with pytest.raises(LayoutError, match=why):
        convert(source, target, **options)  # type: ignore[arg-type]
    if before:
        assert contents(target.pool) == before


def test_other_models_and_token_counts() -> None:
    source = pool(fill=7).view([0, 1], 0, 8)
    convert(source, pool().view([2, 3], 0, 8))  # the control: this one is right
    refused(source, pool(Geometry.kv(2, 4, 8, "float32", 4)).view([2, 3], 0, 8), "another model.*v with width 8 and 4")
    refused(source, pool(Geometry.kv(3, 4, 8, "float32")).view([2, 3], 0, 8), "another model.*layers 2 and 3")
    refused(source, pool(Geometry.kv(2, 2, 8, "float32")).view([2, 3], 0, 8), "another model.*kv heads 4 and 2")
    refused(source, pool().view([2, 3], 0, 7), "the source has 8 tokens")


def test_extents_with_nothing_in_common() -> None:
    source = pool(extent=Extent(0, 2, 0, 2), fill=7).view([0], 0, 4)
    refused(source, pool(extent=Extent(2, 4, 0, 2)).view([0], 0, 4), "nothing in common")
    refused(source, pool(extent=Extent(0, 4, 0, 1)).view([0], 0, 3), "tokens")


@pytest.mark.parametrize("backend", ["native", "torch"])
def test_a_target_that_names_a_block_twice(backend: str) -> None:
    source = pool(fill=7).view([0, 0], 0, 8)  # reading twice is fine
    convert(source, pool().view([3, 2], 0, 8), backend=backend)  # type: ignore[arg-type]
    refused(source, pool().view([3, 3], 0, 8), "names block 3 twice", backend=backend)


@pytest.mark.parametrize("backend", ["native", "torch"])
def test_source_and_target_that_overlap(backend: Backend) -> None:
    one = pool(fill=7)
    refused(one.view([0], 0, 4), one.view([1], 0, 4), "overlap in memory, from address 0x", backend=backend)
    memory = bytearray(4 * 5 * BLOCK)
    whole = Buffer.of(memory)

    def at(*offsets: int) -> Pool:
        buffers = [Buffer(whole.pointer + offset, 5 * BLOCK, memory) for offset in offsets]
        return format("vllm_lbhnc").pool(MODEL, MODEL.full, page=4, blocks=5, buffers=buffers)

    source = at(0, 10 * BLOCK).view([0], 0, 4)
    convert(source, at(5 * BLOCK, 15 * BLOCK).view([0], 0, 4), backend=backend)  # side by side, not overlapping
    with pytest.raises(LayoutError, match="overlap"):
        convert(source, at(5 * BLOCK, 15 * BLOCK - 4).view([0], 0, 4), backend=backend)


def test_memory_elsewhere() -> None:
    source = pool(fill=7).view([0], 0, 4)
    far = [Buffer(1 << 20 << i, 5 * BLOCK, device="cuda") for i in range(2)]
    target = format("vllm_lbhnc").pool(MODEL, MODEL.full, page=4, blocks=5, buffers=far).view([0], 0, 4)
    refused(source, target, "the target lies on device 'cuda'")
    refused(target, source, "the source lies on device 'cuda'")


def test_options() -> None:
    source, target = pool(fill=7).view([0], 0, 4), pool().view([0], 0, 4)
    for threads in (0, -1, 1.5, "2", None, True):
        refused(source, target, "whole number of threads, at least 1, not", threads=threads)
    refused(source, target, "isn't known", backend="cuda")
    for leave in ("no", 1, None, np.bool_(True)):
        refused(source, target, "allow_lossy is True or False, not", allow_lossy=leave)
    make_plan(source, target, True)
    with pytest.raises(LayoutError, match="allow_lossy is True or False, not 1"):
        make_plan(source, target, 1)  # type: ignore[arg-type]
    convert(source, target, threads=np.int64(2))  # type: ignore[arg-type]


def test_what_is_no_view() -> None:
    one = pool()
    view = one.view([0], 0, 4)
    expected = r"expected a View: pool.view\(table, start, stop\)"
    for source, target, what in (
        (one, one, "source is a Pool"),
        (view, one, "target is a Pool"),
        (None, None, "source is a NoneType"),
    ):
        with pytest.raises(LayoutError, match=f"the {what}, {expected}"):
            convert(source, target)  # type: ignore[arg-type]


@pytest.mark.parametrize("backend", ["native", "torch"])
def test_no_tokens_is_no_copy(backend: str) -> None:
    target = pool()
    convert(pool(fill=7).view([], 0, 0), target.view([4], 3, 3), backend=backend)  # type: ignore[arg-type]
    assert contents(target) == contents(pool())


def test_a_table_that_changes_after_it_was_checked() -> None:
    """The kernels look again: an array that is kept without a copy can change under our feet."""
    table = array("q", [0])
    source, target = pool(fill=7).view(table, 0, 4), pool().view([0], 0, 4)
    plan = make_plan(source, target)
    table[0] = 1 << 40
    with pytest.raises(LayoutError, match=f"names block {1 << 40}"):
        native.run(plan)
    table.pop()
    with pytest.raises(LayoutError, match="a block table is shorter"):
        native.run(plan)
    assert contents(target.pool) == contents(pool())


def test_first_mistakes_are_named() -> None:
    """What somebody new to this gets wrong: tensors where buffers belong, numbers with a point, scales in the cache."""
    model = Geometry.kv(1, 2, 4, "float8_e4m3fn", scales="tensor")
    memory = torch.zeros(2, 64, dtype=torch.uint8)
    k, v = Buffer.of(memory[0]), Buffer.of(memory[1])
    apart = Buffer.of(torch.ones(1))

    def pool(buffers: Any, scale: Any) -> Pool:
        row = format("sglang_nhd")
        return row.pool(
            model, model.full, page=8, blocks=1, buffers=buffers, scales={"k_scale": scale, "v_scale": [apart]}
        )

    assert pool([k, v], [apart]).fixed == {"k_scale", "v_scale"}
    with pytest.raises(LayoutError, match=r"expected a Buffer, got a Tensor: wrap it in Buffer.of"):
        pool([memory[0], memory[1]], [apart])
    with pytest.raises(LayoutError, match="buffers come as a list of Buffer, not as a Buffer"):
        pool(k, [apart])
    with pytest.raises(LayoutError, match="buffers come as a list of Buffer, not as a Buffer"):
        pool([k, v], apart)
    with pytest.raises(LayoutError, match=r"static scales \(k_scale, at 0x[0-9a-f]+\) lie inside the cache's memory"):
        pool([k, v], [Buffer.of(memory[1][8:12])])
    with pytest.raises(LayoutError, match=r"positions \[0.0, 4.0\) are not a range"):
        pool([k, v], [apart]).view([0], 0.0, 4.0)  # type: ignore[arg-type]
    with pytest.raises(LayoutError, match="four whole numbers"):
        Extent(0.0, 1, 0, 1)  # type: ignore[arg-type]
    with pytest.raises(LayoutError, match=r"layers is a whole number from 1 to 65536, not 2\.0"):
        Geometry.kv(2.0, 1, 8, "float32")  # type: ignore[arg-type]
    with pytest.raises(LayoutError, match=r"not 8\.0"):
        Geometry.kv(2, 1, 8.0, "float32")  # type: ignore[arg-type]
