"""What the ranks of any split have written the ranks of any other split read, to the bit, through real stores.

Splits are those of engines: tensor parallel sizes that divide the kv heads or replicate them, and pipeline stages by
vLLM's rule and SGLang's. Who can't write is told which number would do.
"""

import re
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvlingua.common.cache import KVCache
from kvlingua.common.errors import UnsupportedError
from kvlingua.common.identity.extents import ShardGrid, candidates, cover_among
from kvlingua.common.identity.namespace import Namespace
from kvlingua.common.identity.ranks import STAGE_RULES, Split
from kvlingua.layouts.geometry import Extent, Geometry
from tests.common.kv import Cache, namespace

# kv heads of GQA, MQA, MHA, and two that powers of two don't divide. A latent (MLA) is one head, too.
HEADS = (8, 1, 32, 18, 25)
LAYERS = (4, 6, 7)
TOKENS = list(range(8))
ON_THE_GRID = list(product((1, 2, 4, 8), (1, 2, 4), STAGE_RULES))
ANYWHERE = list(product((1, 2, 3, 4, 5, 6, 8, 9, 16, 32), (1, 2, 3, 4), STAGE_RULES))


def splits(heads: int, layers: int, sizes: list[tuple[int, int, str]]) -> list[Split]:
    """Those of the sizes that an engine could run."""
    possible = [size for size in sizes if (heads % size[0] == 0 or size[0] % heads == 0) and size[1] <= layers]
    return list(dict.fromkeys(Split.of(heads, layers, *size) for size in possible))


def ranks(split: Split) -> Iterator[tuple[int, int]]:
    return product(range(split.tensor), range(len(split.stages)))


def can_write(grid: ShardGrid, split: Split) -> bool:
    return all(grid.aligned(extent) == extent for extent in split.extents())


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize(("layers", "layers_per_shard"), [(4, None), (8, 2), (6, 3), (7, 1), (30, 1), (30, 15)])
def test_every_reader_covers_what_any_writer_holds(heads: int, layers: int, layers_per_shard: int | None) -> None:
    """Names alone, all of them: TP 1, 2, 4, 8 x PP 1, 2, 4 wrote, whole shards each; anybody reads."""
    grid = ShardGrid.of(Geometry.kv(layers, heads, 8, "float32"), layers_per_shard)
    writers = [split for split in splits(heads, layers, ON_THE_GRID) if can_write(grid, split)]
    needs = {extent for split in splits(heads, layers, ANYWHERE) for extent in split.extents()}
    assert writers
    assert len(needs) > 1
    for needed, writer in product(needs, writers):
        parts = {extent for extent in writer.extents() if extent.intersect(needed)}
        assert parts <= set(candidates(grid, needed))
        assert cover_among(grid, needed, parts) == tuple(sorted(parts))
        for lost in parts:
            assert cover_among(grid, needed, parts - {lost}) is None


MODELS: dict[str, dict[str, object]] = {
    "float32": {"kv_dtype": "float32"},
    "fp8 with scales per token": {"kv_dtype": "float8_e4m3fn", "scales_policy": "token"},
    "fp8 with scales per head": {"kv_dtype": "float8_e5m2", "scales_policy": "head"},
    "fp8 with scales per tensor": {"kv_dtype": "float8_e4m3fnuz", "scales_policy": "tensor"},
    "a latent": {"kv_dtype": "bfloat16", "planes": {"latent": 12, "rope": 4}},
}


@st.composite
def models(draw: st.DrawFn) -> Namespace:
    kind, layers = draw(st.sampled_from(sorted(MODELS))), draw(st.sampled_from(LAYERS))
    heads = 1 if kind == "a latent" else draw(st.sampled_from(HEADS))
    grid = ShardGrid.of(Geometry.kv(layers, heads, 8, "float32"), draw(st.sampled_from((None, 1, 2, 3))))
    shape = {"rope": {"rotary_dim": 4}, "planes": {"k": 8, "v": 4}, "chunk_tokens": 4}
    sizes = {"layers": layers, "kv_heads": heads}
    cut = {"heads_per_shard": grid.heads_per_shard, "layers_per_shard": grid.layers_per_shard}
    return namespace(**(shape | MODELS[kind] | sizes | cut))


@settings(max_examples=150)
@given(one=models(), data=st.data())
def test_what_any_split_wrote_any_split_reads(one: Namespace, data: st.DataObject) -> None:
    read_everywhere("memory://", one, data)


@settings(max_examples=20)
@given(one=models(), data=st.data())
def test_so_it_is_with_files(one: Namespace, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    read_everywhere(f"file://{tmp_path_factory.mktemp('store')}", one, data)


def read_everywhere(url: str, one: Namespace, data: st.DataObject) -> None:
    on_the_grid, anywhere = (splits(one.kv_heads, one.layers, sizes) for sizes in (ON_THE_GRID, ANYWHERE))
    writer = data.draw(st.sampled_from([split for split in on_the_grid if can_write(one.grid, split)]), "writer")
    whole = Cache(one, len(TOKENS), seed=1)
    with KVCache.open(url) as cache:
        for rank, stage in ranks(writer):
            if writer.writes(rank):
                part = whole.part(writer.extent(rank, stage))
                assert cache.store(one, TOKENS, part.view(), 0, len(TOKENS)).stored == 2
        assert cache.flush(10)
        for rank, stage in ranks(writer):  # whoever comes later with the same finds it there
            assert cache.store(one, TOKENS, whole.part(writer.extent(rank, stage)).view(), 0, len(TOKENS)).stored == 0
        for _ in range(3):
            reader = data.draw(st.sampled_from(anywhere), "reader")
            for extent in reader.extents():
                hit = cache.lookup(one, TOKENS, extent=extent)
                assert hit.tokens == len(TOKENS)
                wanted = whole.part(extent)
                target = wanted.emptied()
                assert target.memory != wanted.memory
                cache.load(hit, target.view(), 0, len(TOKENS))
                assert target.memory == wanted.memory


def test_ranks_load_their_part_of_what_was_found_for_the_whole_model() -> None:
    """As an engine does whose scheduler looks up and whose ranks load."""
    one = namespace(kv_heads=8, layers=6, layers_per_shard=2)
    whole = Cache(one, 32, seed=1)
    with KVCache.open("memory://") as cache:
        for extent in Split.of(8, 6, 2, 1).extents():
            cache.store(one, range(32), whole.part(extent).view(), 0, 32)
        assert cache.flush(10)
        hit = cache.lookup(one, range(32))
        for extent in Split.of(8, 6, 4, 2).extents():
            target = Cache(one, 32, extent=extent)
            cache.load(hit, target.view(), 0, 32)
            assert target.memory == whole.part(extent).memory


def test_nothing_is_found_while_one_rank_has_not_written() -> None:
    one = namespace(kv_heads=8, layers=6, layers_per_shard=3)
    whole, writer = Cache(one, 32, seed=1), Split.of(8, 6, 4, 2)
    with KVCache.open("memory://") as cache:
        *most, last = writer.extents()
        for extent in most:
            cache.store(one, range(32), whole.part(extent).view(), 0, 32)
        assert cache.flush(10)
        assert cache.lookup(one, range(32)).tokens == 0
        assert cache.lookup(one, range(32), extent=Extent(0, 8, 0, 3)).tokens == 32
        assert cache.lookup(one, range(32), extent=last).tokens == 0
        cache.store(one, range(32), whole.part(last).view(), 0, 32)
        assert cache.flush(10)
        assert cache.lookup(one, range(32)).tokens == 32


def test_writers_of_several_splits_share_a_chunk() -> None:
    """Each stores what isn't there; a reader takes objects of both."""
    one = namespace(kv_heads=8, layers=6, layers_per_shard=3)
    whole = Cache(one, 32, seed=1)
    with KVCache.open("memory://") as cache:
        first = Split.of(8, 6, 2, 1).extents()[0]
        cache.store(one, range(32), whole.part(first).view(), 0, 32)
        assert cache.flush(10)
        stored = {
            extent: cache.store(one, range(32), whole.part(extent).view(), 0, 32).stored
            for extent in Split.of(8, 6, 4, 2).extents()
        }
        assert cache.flush(10)
        assert all(count == (0 if first.contains(extent) else 2) for extent, count in stored.items())
        hit = cache.lookup(one, range(32))
        assert {len(cover) for cover in hit.covers} == {5}
        target = Cache(one, 32)
        cache.load(hit, target.view(), 0, 32)
        assert target.memory == whole.memory


@given(
    st.sampled_from(HEADS),
    st.sampled_from(LAYERS),
    st.sampled_from((None, 1, 2, 3)),
    st.data(),
)
def test_who_cannot_write_is_told_what_would_do(
    heads: int, layers: int, layers_per_shard: int | None, data: st.DataObject
) -> None:
    """The advice is followed, and then it works."""
    geometry = Geometry.kv(layers, heads, 8, "float32")
    grid = ShardGrid.of(geometry, layers_per_shard)
    split = data.draw(st.sampled_from(splits(heads, layers, ANYWHERE)))
    extent = split.extent(split.tensor - 1, len(split.stages) - 1)
    if grid.aligned(extent) == extent:
        grid.check_writer(extent)
        return
    with pytest.raises(UnsupportedError) as refused:
        grid.check_writer(extent)
    message = str(refused.value)
    sizes = re.search(r"use TP (.+)$", message)
    if sizes:
        assert f"kv heads {extent.head_start}-{extent.head_stop} of {heads}" in message
        assert f"grid of {grid.heads_per_shard}" in message
        for size in map(int, re.findall(r"\d+", sizes[1])):
            for part in Split.of(heads, layers, size).extents():
                grid.check_writer(part)
        return
    divided = re.search(r"set layers_per_shard to a number that divides (\d+)$", message)
    assert divided
    assert f"layers {extent.layer_start}-{extent.layer_stop} of {layers}" in message
    for number in range(1, layers + 1):
        if int(divided[1]) % number == 0:
            ShardGrid.of(geometry, number).check_writer(extent)


@pytest.mark.parametrize(
    ("heads", "layers", "extent", "message"),
    [
        (25, 32, Extent(0, 5, 0, 32), "kv heads 0-5 of 25 doesn't end on the shard grid of 25: use TP 1"),
        (18, 32, Extent(0, 3, 0, 32), "kv heads 0-3 of 18 doesn't end on the shard grid of 9: use TP 1 or 2"),
        (8, 30, Extent(0, 8, 7, 15), "layers 7-15 of 30 .* set layers_per_shard to a number that divides 1$"),
        (8, 32, Extent(0, 8, 16, 32), "layers 16-32 of 32 .* set layers_per_shard to a number that divides 16$"),
    ],
)
def test_a_store_refuses_with_the_arithmetic(
    heads: int, layers: int, extent: Extent, message: str, tmp_path: Path
) -> None:
    grid = ShardGrid.of(Geometry.kv(layers, heads, 8, "float32"))
    one = namespace(
        kv_heads=heads, layers=layers, heads_per_shard=grid.heads_per_shard, layers_per_shard=grid.layers_per_shard
    )
    with KVCache.open(f"file://{tmp_path}/store") as cache, pytest.raises(UnsupportedError, match=message):
        cache.store(one, range(16), Cache(one, 16, seed=1, extent=extent).view(), 0, 16)
    assert not (tmp_path / "store").exists()
