"""The shard grid, and which objects may cover what a reader needs."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvlingua.common.errors import UnsupportedError
from kvlingua.common.identity.extents import ShardGrid, candidates, cover_among, covers
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
    found = covers(grid, needed)
    assert found[0] == (grid.aligned(needed),)
    assert len(set(found)) == len(found)
    for cover in found:
        for part in cover:
            grid.check_writer(part)
            assert part.intersect(needed)
        held = [cell for part in cover for cell in cells(part)]
        assert cells(needed) <= set(held)
        assert len(held) == len(set(held))
        assert list(cover) == sorted(cover)


@given(grids_with_needs())
def test_a_reader_asks_for_few_names(case: tuple[ShardGrid, Extent]) -> None:
    grid, needed = case
    asked = candidates(grid, needed)
    assert set(asked) == {extent for cover in covers(grid, needed) for extent in cover}
    assert len(set(asked)) == len(asked) <= 195
    if grid.layers_per_shard == grid.layers:
        assert len(asked) <= 15


@pytest.mark.parametrize(
    ("heads", "layers", "layers_per_shard", "names"),
    [(8, 32, None, 15), (8, 32, 8, 105), (8, 31, 1, 195), (1, 61, None, 1), (18, 30, None, 3), (25, 32, None, 1)],
)
def test_how_many_names_a_reader_of_everything_asks_for(
    heads: int, layers: int, layers_per_shard: int | None, names: int
) -> None:
    grid = ShardGrid.of(Geometry.kv(layers, heads, 64, "bfloat16"), layers_per_shard)
    assert len(candidates(grid, grid.full)) == names


@given(grids_with_needs(), st.data())
def test_whatever_is_held_is_used(case: tuple[ShardGrid, Extent], data: st.DataObject) -> None:
    """A cover is found exactly if what is held, in whatever pieces, holds all that is needed."""
    grid, needed = case
    held = set(data.draw(st.lists(st.sampled_from(candidates(grid, needed)), unique=True)))
    cover = cover_among(grid, needed, held)
    everything = {cell for extent in held for cell in cells(extent)}
    if not cells(needed) <= everything:
        assert cover is None
        return
    assert cover is not None
    assert set(cover) <= held
    assert cells(needed) <= {cell for extent in cover for cell in cells(extent)}
    whole = [known for known in covers(grid, needed) if set(known) <= held]
    if whole:
        assert cover == whole[0]


def test_pieces_of_several_splits_are_put_together() -> None:
    """One of two ranks wrote, then was joined by eight smaller ones, which skipped what was there."""
    grid = ShardGrid.of(Geometry.kv(4, 8, 64, "bfloat16"))
    held = {Extent(0, 4, 0, 4), *(Extent(head, head + 1, 0, 4) for head in range(4, 8))}
    assert cover_among(grid, grid.full, held) == tuple(sorted(held))
    assert cover_among(grid, grid.full, held - {Extent(7, 8, 0, 4)}) is None
    assert cover_among(grid, Extent(0, 2, 0, 4), held) == (Extent(0, 4, 0, 4),)
    assert cover_among(grid, grid.full, held | {grid.full}) == (grid.full,)
