"""A plan's integers, walked element by element, give what the reference gives, byte for byte; what of it is made
once. (What it costs: benchmarks/convert.py --only plan.)"""

from __future__ import annotations

import mmap
import sys
import threading
from array import array
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from kvlingua.layouts import Buffer, Geometry, LayoutError, Pool, Rope, View, convert, format, gpu, native
from kvlingua.layouts.arrangement import Digits
from kvlingua.layouts.geometry import Order
from kvlingua.layouts.plan import Plan, make_plan
from kvlingua.layouts.refinement import MAX_AXES, Row, pieces
from tests.gpu import relocated
from tests.layouts import kernel_sets
from tests.layouts.plan_walker import walk
from tests.layouts.random_pools import Arena, Kept, cast, copied, extents, geometries, views
from tests.native import builds

ARENA = 1 << 18
RUNS: dict[str, Callable[[Plan, Arena], None]] = {
    "walked": lambda plan, arena: walk(plan, arena.memory),
    "native": lambda plan, arena: native.run(plan),
    "host twin": lambda plan, arena: kernel_sets.run(plan, kernel_sets.TWIN),
    "host twin, elsewhere": lambda plan, arena: elsewhere(plan),
}


def elsewhere(plan: Plan) -> None:
    """The way in which tests run on a GPU, without one: on a copy of the memory."""
    twin = builds.twin()
    library = gpu.load(twin).library if twin else None
    if library is None:
        pytest.skip("there is no C++ compiler to make the host twin with")
    relocated.run(plan, library, "cpu")


def agree(data: st.DataObject, kept: tuple[Kept, Kept], run: Callable[[Plan, Arena], None]) -> None:
    """The plan and the reference write the same bytes into the same memory, and nothing else."""
    ours, theirs = data.draw(geometries(kept))
    held = data.draw(st.just(ours.full) | extents(ours))
    wanted = data.draw(st.just(ours.full) | extents(ours).filter(lambda extent: extent.intersect(held) is not None))
    tokens = data.draw(st.integers(1, 20))
    arena = Arena.of(ARENA, data.draw(st.integers(0, 99)))
    source = data.draw(views(arena, ours, kept[0], held, tokens))
    middle = arena.used
    target = data.draw(views(arena, theirs, kept[1], wanted, tokens))
    try:
        plan = make_plan(source, target, allow_lossy=True)
    except LayoutError as error:
        if "in two steps" in str(error):  # scales can't be made while dims are permuted piece by piece
            return
        raise
    before = arena.memory.clone()
    convert(source, target, backend="torch", allow_lossy=True)
    expected = arena.memory.clone()
    assert torch.equal(before[:middle], expected[:middle]), "the source was written"
    arena.memory.copy_(before)
    run(plan, arena)
    assert torch.equal(arena.memory, expected)


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("kept", [copied(), cast()], ids=["copied", "cast"])
def test_the_plan_and_the_reference_agree(kept: st.SearchStrategy[tuple[Kept, Kept]], run: str) -> None:
    @settings(max_examples=50)
    @given(data=st.data())
    def explore(data: st.DataObject) -> None:
        agree(data, data.draw(kept), RUNS[run])

    explore()


def test_the_comparison_notices_a_wrong_stride(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control of everything above."""
    made = make_plan

    def wrong(source: View, target: View, allow_lossy: bool) -> Plan:
        plan = made(source, target, allow_lossy)
        first, *others = plan.planes
        (size, step, to), *inner = first.axes
        planes = replace(first, axes=((size, step + 2 * first.target.head, to), *inner)), *others
        return Plan(source, target, replace(plan.recipe, planes=planes))

    monkeypatch.setattr("tests.layouts.test_plan.make_plan", wrong)

    @settings(phases=[Phase.generate])
    @given(data=st.data())
    def explore(data: st.DataObject) -> None:
        agree(data, (Kept("float32"), Kept("float32")), RUNS["walked"])

    with pytest.raises(AssertionError):
        explore()


@st.composite
def rows(draw: st.DrawFn, width: int, rotated: int) -> Row:
    """A row in tiles or not, dense in any nesting, rotated dims in any order."""
    order: Order = draw(st.sampled_from(("half", "interleaved"))) if rotated else "none"
    tile = draw(st.sampled_from([n for n in range(1, width + 1) if width % n == 0]))
    dims: Digits = draw(
        st.sampled_from(
            (((width, 2),), ((width // tile, 2 * tile * 3), (tile, 2)), ((width // tile, 2), (tile, 2 * width)))
        )
    )
    return Row(dims, Rope(order, rotated))


@given(data=st.data(), width=st.integers(1, 48))
def test_pieces_are_every_element_once(data: st.DataObject, width: int) -> None:
    rotated = 2 * data.draw(st.integers(0, width // 2))
    source, target = data.draw(rows(width, rotated)), data.draw(rows(width, rotated))
    found: dict[int, int] = {}
    for piece in pieces(source, target):
        assert len(piece.axes) <= MAX_AXES
        points = [(piece.source, piece.target)]
        for size, step, to in piece.axes:
            points = [(at + i * step, there + i * to) for at, there in points for i in range(size)]
        assert not found.keys() & {there for _, there in points}
        found.update({there: at for at, there in points})
    assert found == {target.offset(i): source.offset(i) for i in range(width)}


def test_real_rows_are_one_piece() -> None:
    """What engines have: halves against pairs, tiles of 8 or 16, and both at once."""
    plain, tiles, pairs = ((128, 2),), ((16, 4096), (8, 2)), ((64, 64), (2, 2))
    orders: tuple[Order, ...] = ("half", "interleaved")
    for ours in (plain, tiles, pairs):
        for theirs in (plain, tiles, pairs):
            for order in orders:
                row = Row(ours, Rope("half", 128)), Row(theirs, Rope(order, 128))
                assert len(pieces(*row)) == 1
    (piece,) = pieces(Row(plain, Rope()), Row(plain, Rope()))
    assert piece.axes == ((128, 2, 2),)
    partly = pieces(Row(plain, Rope("interleaved", 64)), Row(plain, Rope("half", 64)))
    assert [piece.axes for piece in partly] == [((2, 2, 64), (32, 4, 2)), ((64, 2, 2),)]
    with pytest.raises(LayoutError, match="aren't the same elements"):
        pieces(Row(plain, Rope()), Row(((64, 2),), Rope()))


def test_rows_in_pieces_beyond_reason_are_refused() -> None:
    fives, sevens = ((7000, 100), (5, 2)), ((5000, 100), (7, 2))
    with pytest.raises(LayoutError, match=r"too little in common .* pieces, at most 1024.*without tiles"):
        pieces(Row(fives, Rope()), Row(sevens, Rope()))


LAYERS = 32
MODEL = Geometry.kv(LAYERS, 8, 128, "bfloat16")


def pool(name: str, page: int, blocks: int) -> Pool:
    """Memory that is never touched, so that it costs nothing."""
    count = {"canonical": 1, "vllm_lbnhc": LAYERS, "sglang_nhd": 2 * LAYERS}[name]
    nbytes = MODEL.block_bytes(MODEL.full, page) * blocks // count
    buffers = [Buffer.of(mmap.mmap(-1, nbytes)) for _ in range(count)]
    return format(name).pool(MODEL, MODEL.full, page=page, blocks=blocks, buffers=buffers)


def test_what_depends_on_geometry_alone_is_made_once() -> None:
    one, other = pool("canonical", 64, 2), pool("canonical", 64, 2)
    target = pool("vllm_lbnhc", 16, 8)
    plans = [make_plan(each.view([1, 0], 0, 64), target.view([3, 2, 1, 0], 0, 64)) for each in (one, one, other)]
    assert plans[0].recipe is plans[1].recipe is plans[2].recipe
    assert plans[0].planes[0].source.bases(one) != plans[2].planes[0].source.bases(other)


def test_no_tokens_is_a_plan_too() -> None:
    source, target = pool("canonical", 64, 1), pool("vllm_lbnhc", 16, 8)
    assert make_plan(source.view([], 0, 0), target.view([], 0, 0)).tokens == 0


def test_threads_that_meet_a_new_pool_at_once_get_addresses_that_stay() -> None:
    """A plan for the library holds the addresses of arrays: none of them may be an array that was made in vain."""
    geometry = Geometry.kv(64, 2, 8, "float32")
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(400):
            memory = bytearray(geometry.block_bytes(geometry.full, 16))
            pool = format("canonical").pool(geometry, geometry.full, page=16, blocks=1, buffers=[Buffer.of(memory)])
            barrier = threading.Barrier(2)
            got: list[list[array[int]]] = []

            def ask(pool: Pool = pool, barrier: threading.Barrier = barrier, got: list[list[array[int]]] = got) -> None:
                barrier.wait()
                got.append([pool.memory, *(pool.bases(plane, 0, 64, 0) for plane in (0, 1))])

            threads = [threading.Thread(target=ask) for _ in range(2)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            for one, other in zip(*got, strict=True):
                assert one is other
    finally:
        sys.setswitchinterval(interval)
