"""What is stored in one layout, part or extent is loaded in any other, to the byte, through real stores."""

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvlingua.common.cache import KVCache
from kvlingua.layouts.geometry import Extent
from tests.common.kv import Cache, namespace
from tests.layouts.engine_pools import GOLDEN, EnginePool, random_content

TOKENS = list(range(96))
ROWS = sorted(
    name for name, form in GOLDEN.items() if "kv" in form.kinds and not form.equal and form.page_multiple(1) == 1
)
"""Rows that hold K and V of any widths in pages of any size; all of them: tests/layouts/test_pairs.py."""


def empty(scheme: str, folders: pytest.TempPathFactory) -> str:
    """The URL of a store that nothing else uses."""
    return "memory://" if scheme == "memory" else f"file://{folders.mktemp('store')}"


@pytest.mark.parametrize("scheme", ["file", "memory"])
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_range_is_loaded_anywhere(
    scheme: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with KVCache.open(empty(scheme, tmp_path_factory)) as cache:
        handle = cache.store(namespace(), TOKENS, Cache(namespace(), 96, seed=1).view(), 0, 96)
        assert handle.committed.wait(10)
        start = data.draw(st.integers(0, 96))
        stop = data.draw(st.integers(start, 96))
        place = data.draw(st.integers(0, 50))
        extent = Extent(data.draw(st.integers(0, 3)), 4, data.draw(st.integers(0, 2)), 3)
        hit = cache.lookup(namespace(), TOKENS, extent=extent)
        target = Cache(namespace(), 150, extent=extent)
        cache.load(hit, target.view(place, place + stop - start), start, stop)
        source = Cache(namespace(), 96, seed=1)
        for token in range(start, stop):
            for layer in range(extent.layers):
                for plane in range(2):
                    for head in range(extent.heads):
                        assert target.bytes_of(place + token - start, layer, plane, head) == source.bytes_of(
                            token, extent.layer_start + layer, plane, extent.head_start + head
                        )
        assert target.untouched(0, place)
        assert target.untouched(place + stop - start)


def test_ranks_of_one_size_are_read_by_ranks_of_another(url: str) -> None:
    """Two writers of 2 heads each; readers of all, of one head, and of two."""
    with KVCache.open(url) as cache:
        full = Cache(namespace(), 96, seed=1)
        for low in (0, 2):
            handle = cache.store(namespace(), TOKENS, full.view(), 0, 96, extent=Extent(low, low + 2, 0, 3))
            assert handle.committed.wait(10)
            assert handle.stored == 6
        for low, high in ((0, 4), (1, 2), (0, 2), (3, 4)):
            extent = Extent(low, high, 0, 3)
            hit = cache.lookup(namespace(), TOKENS, extent=extent)
            assert hit.tokens == 96, extent
            target = Cache(namespace(), 96, extent=extent)
            cache.load(hit, target.view(), 0, 96)
            for head in range(extent.heads):
                assert target.bytes_of(95, 2, 1, head) == full.bytes_of(95, 2, 1, low + head)
                assert target.bytes_of(0, 0, 0, head) == full.bytes_of(0, 0, 0, low + head)
        assert cache.store(namespace(), TOKENS, full.view(), 0, 96).stored == 0  # covered by what is there


def test_chunks_of_one_prompt_may_lie_in_objects_of_different_extents(url: str) -> None:
    with KVCache.open(url) as cache:
        full = Cache(namespace(), 96, seed=1)
        for start, stop, extents in ((0, 32, [(0, 4)]), (32, 64, [(0, 2), (2, 4)]), (64, 96, [(0, 4)])):
            for low, high in extents:
                view = full.view(start, stop)
                cache.store(namespace(), TOKENS, view, start, stop, extent=Extent(low, high, 0, 3))
        assert cache.flush(10)
        hit = cache.lookup(namespace(), TOKENS)
        assert hit.tokens == 96
        assert {len(cover) for cover in hit.covers} == {1, 2}
        target = Cache(namespace(), 96)
        cache.load(hit, target.view(5, 90), 5, 90)
        assert target.same_tokens(full, 5, 90)
        assert target.untouched(0, 5)
        assert target.untouched(90)


@pytest.mark.parametrize("scheme", ["file", "memory"])
@settings(max_examples=60, deadline=None)
@given(
    source=st.sampled_from(ROWS),
    target=st.sampled_from(ROWS),
    pages=st.tuples(st.sampled_from([1, 4, 16, 24]), st.sampled_from([1, 4, 16, 24])),
    cut=st.tuples(st.integers(0, 48), st.integers(0, 48)),
    dtype=st.sampled_from(["float32", "bfloat16"]),
    random=st.randoms(use_true_random=False),
)
def test_every_layout_through_the_store_into_every_other(
    scheme: str,
    source: str,
    target: str,
    pages: tuple[int, int],
    cut: tuple[int, int],
    dtype: str,
    random: Random,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Against golden forms filled by plain indexing: the whole memory, what isn't asked for included."""
    identity = namespace(kv_dtype=dtype, chunk_tokens=8)
    geometry, tokens = identity.geometry, list(range(48))
    start, stop = min(cut), max(cut)

    def engine(name: str, page: int) -> tuple[EnginePool, list[int]]:
        page, blocks = (page, -(-64 // page) + 3) if GOLDEN[name].has_blocks else (64, 1)
        table = random.sample(range(blocks), min(blocks, -(-64 // page)))
        return EnginePool(name, geometry, geometry.full, page, blocks), table

    content = random_content(geometry, 48, seed=7)
    writer, writer_table = engine(source, pages[0])
    writer.put(content, writer_table, 0, geometry.full)
    reader, reader_table = engine(target, pages[1])
    wanted = reader.clone()
    part = {place: rows[start:stop] for place, rows in content.items()}
    wanted.put(part, reader_table, start, geometry.full)
    with KVCache.open(empty(scheme, tmp_path_factory)) as cache:
        handle = cache.store(identity, tokens, writer.pool().view(writer_table, 0, 48), 0, 48)
        assert handle.committed.wait(10)
        hit = cache.lookup(identity, tokens)
        assert hit.tokens == 48
        cache.load(hit, reader.pool().view(reader_table, start, stop), start, stop)
    for ours, golden in zip(reader.memory, wanted.memory, strict=True):
        assert ours.equal(golden)
