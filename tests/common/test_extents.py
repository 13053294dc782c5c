"""The shard grid, and which objects may cover what a reader needs."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvlingua.common.errors import UnsupportedError
from kvlingua.common.identity.extents import ShardGrid, covers
from kvlingua.layouts.geometry import Extent, Geometry

GRIDS = st.builds(
    lambda heads, layers, per: ShardGrid.of(Geometry.kv(layers, heads, 8, "float32"), per),
    st.sampled_from((1, 2, 3, 4, 5, 6, 8, 12, 16, 18, 20, 32, 40, 64)),
    st.integers(1, 12),
    st.none() | st.integers(1, 14),
)


@st.composite
def grids_with_needs(draw: st.DrawFn) -> tuple[ShardGrid, Extent]:
    grid = draw(GRIDS)
    heads, layers = draw(st.integers(1, grid.kv_heads)), draw(st.integers(1, grid.layers))
    head, layer = draw(st.integers(0, grid.kv_heads - heads)), draw(st.integers(0, grid.layers - layers))
    return grid, Extent(head, head + heads, layer, layer + layers)


def cells(extent: Extent) -> set[tuple[int, int]]:
    heads, layers = range(extent.head_start, extent.head_stop), range(extent.layer_start, extent.layer_stop)
    return {(head, layer) for head in heads for layer in layers}


@given(GRIDS)
def test_shards_divide_the_model(grid: ShardGrid) -> None:
    shards = grid.shards(grid.full)
    assert set().union(*map(cells, shards)) == cells(grid.full)
    assert sum(len(cells(shard)) for shard in shards) == len(cells(grid.full))
    assert shards == sorted(shards)


@pytest.mark.parametrize("heads", [1, 2, 4, 8, 16, 32, 24, 64])
def test_ranks_up_to_8_own_whole_shards(heads: int) -> None:
    grid = ShardGrid.of(Geometry.kv(4, heads, 64, "bfloat16"))
    for ranks in (1, 2, 4, 8):
        owned = max(1, heads // ranks)  # with more ranks than heads they are replicated
        for start in range(0, heads, owned):
            grid.check_writer(Extent(start, start + owned, 0, 4))


@given(grids_with_needs())
def test_aligned_is_the_smallest_union_of_shards(case: tuple[ShardGrid, Extent]) -> None:
    grid, needed = case
    touched = [shard for shard in grid.shards(grid.full) if shard.intersect(needed)]
    assert set().union(*map(cells, touched)) == cells(grid.aligned(needed))
    grid.check_writer(grid.aligned(needed))


@given(grids_with_needs())
def test_only_unions_of_shards_may_be_written(case: tuple[ShardGrid, Extent]) -> None:
    grid, extent = case
    if grid.aligned(extent) == extent:
        grid.check_writer(extent)
    else:
        with pytest.raises(UnsupportedError, match="doesn't end on the shard grid"):
            grid.check_writer(extent)


def test_refusals_show_the_arithmetic() -> None:
    grid = ShardGrid.of(Geometry.kv(32, 18, 64, "bfloat16"), 16)
    with pytest.raises(UnsupportedError) as refused:
        grid.check_writer(Extent(0, 2, 0, 32))
    assert str(refused.value) == "a writer with kv heads 0-2 of 18 doesn't end on the shard grid of 9: use TP 1 or 2"
    assert refused.value.reason == "shard_grid"
    with pytest.raises(
        UnsupportedError, match=r"layers 0-10 of 32 .* grid of 16: set layers_per_shard to .* divides 10"
    ):
        grid.check_writer(Extent(0, 18, 0, 10))
    with pytest.raises(UnsupportedError, match="outside a model of 18 kv heads and 32 layers"):
        grid.check_writer(Extent(0, 36, 0, 32))
    with pytest.raises(UnsupportedError, match="at least one layer"):
        ShardGrid.of(Geometry.kv(32, 18, 64, "bfloat16"), 0)


@given(grids_with_needs())
def test_every_cover_covers_and_nothing_overlaps(case: tuple[ShardGrid, Extent]) -> None:
    grid, needed = case
    found = list(covers(grid, needed))
    assert found[0] == (grid.aligned(needed),)
    assert len(set(found)) == len(found)
    assert sum(map(len, found)) <= 80
    for cover in found:
        for part in cover:
            grid.check_writer(part)
        held = [cell for part in cover for cell in cells(part)]
        assert cells(needed) <= set(held)
        assert len(held) == len(set(held))
        if len(cover) > 1:
            assert set(held) == cells(grid.aligned(needed))
        assert list(cover) == sorted(cover)


@given(grids_with_needs())
def test_what_last_hit_comes_first(case: tuple[ShardGrid, Extent]) -> None:
    grid, needed = case
    found = list(covers(grid, needed, grid.full))
    assert found[0] == (grid.full,)
    assert set(found) == set(covers(grid, needed))
    elsewhere = Extent(grid.kv_heads, grid.kv_heads + 1, 0, 1)
    assert list(covers(grid, needed, elsewhere)) == list(covers(grid, needed))


@given(grids_with_needs(), st.sampled_from((1, 2, 4, 8)), st.sampled_from((1, 2, 4, 8)))
def test_whatever_tensor_parallel_size_wrote_is_found(
    case: tuple[ShardGrid, Extent], writers: int, readers: int
) -> None:
    """Every reader of a tensor-parallel group finds what another group wrote, if it could write at all."""
    grid, _ = case
    if grid.kv_heads % writers or grid.kv_heads % readers or grid.kv_heads // writers % grid.heads_per_shard:
        return
    written = set(split(grid, writers))
    for needed in split(grid, readers):
        assert any(set(cover) <= written for cover in covers(grid, needed))


def split(grid: ShardGrid, ranks: int) -> list[Extent]:
    ends = range(0, grid.kv_heads + 1, grid.kv_heads // ranks)
    return [Extent(start, stop, 0, grid.layers) for start, stop in pairwise(ends)]
