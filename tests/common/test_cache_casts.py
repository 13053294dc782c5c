"""Engines that keep the same numbers in another order or dtype: what is stored is exact, and a cast is only made where
the caller allows it."""

import struct

import pytest

from kvlingua.common import bulk
from kvlingua.common.cache import KVCache
from kvlingua.common.identity.namespace import Namespace
from kvlingua.layouts.convert import convert
from kvlingua.layouts.errors import LayoutError
from kvlingua.layouts.formats import format
from kvlingua.layouts.memory import Buffer
from tests.common.kv import CHUNK, Cache, namespace

TOKENS = list(range(32))
HALF = namespace(rope_order="half", rope={"rotary_dim": 6})  # 6 of 8
INTERLEAVED = namespace(rope_order="interleaved", rope={"rotary_dim": 6})
BFLOAT16 = namespace(kv_dtype="bfloat16")
FP8 = namespace(kv_dtype="float8_e4m3fn", scales_policy="token")


def stored(cache: KVCache, one: Namespace, source: Cache) -> None:
    handle = cache.store(one, TOKENS, source.view(), 0, 32)
    assert handle.committed.wait(10)
    assert (handle.stored, handle.error) == (2, None)


def loaded(cache: KVCache, one: Namespace, into: Namespace, allow_lossy: bool = False) -> Cache:
    target = Cache(into, 32)
    hit = cache.lookup(one, TOKENS)
    assert hit.tokens == 32
    cache.load(hit, target.view(), 0, 32, allow_lossy=allow_lossy)
    return target


def exact(one: Namespace, seed: int = 1) -> Cache:
    """A cache of small whole numbers, which every dtype but fp8 holds."""
    cache = Cache(one, 32)
    for index, memory in enumerate(cache.memory):
        code = {"float32": "<f", "bfloat16": "<f"}[one.kv_dtype]
        size = 4 if one.kv_dtype == "float32" else 2
        for place in range(len(memory) // size):
            memory[place * size : (place + 1) * size] = struct.pack(code, (place + 7 * index + seed) % 200)[-size:]
    return cache


def test_another_order_of_rotated_dims_is_permuted(url: str) -> None:
    """Dim 2i of an interleaved head is dim i of a half one, dim 2i + 1 is dim i + 3; the other two stay."""
    with KVCache.open(url) as cache:
        source = Cache(INTERLEAVED, 32, seed=1)
        stored(cache, HALF, source)
        assert loaded(cache, HALF, INTERLEAVED).memory == source.memory
        half = loaded(cache, HALF, HALF)
    for token, layer, head in ((0, 0, 0), (31, 2, 3), (17, 1, 2)):
        before, after = source.bytes_of(token, layer, 0, head), half.bytes_of(token, layer, 0, head)
        dims = [before[4 * dim : 4 * dim + 4] for dim in (0, 2, 4, 1, 3, 5, 6, 7)]
        assert after == b"".join(dims) != before
        assert source.bytes_of(token, layer, 1, head) == half.bytes_of(token, layer, 1, head)


def test_another_width_of_rotated_dims_is_another_model(url: str) -> None:
    with KVCache.open(url) as cache:
        for other in (namespace(rope={"rotary_dim": 4}), namespace(rope={}, rope_order="none")):
            with pytest.raises(LayoutError, match="of another model than the target"):
                cache.store(HALF, TOKENS, Cache(other, 32, seed=1).view(), 0, 32)


def test_a_wider_dtype_holds_what_a_narrower_one_has(url: str) -> None:
    with KVCache.open(url) as cache:
        source = exact(BFLOAT16)
        stored(cache, namespace(), source)
        assert loaded(cache, namespace(), namespace()).memory == exact(namespace()).memory
        target = Cache(BFLOAT16, 32)
        with pytest.raises(LayoutError, match="allow_lossy"):
            cache.load(cache.lookup(namespace(), TOKENS), target.view(), 0, 32)
        assert target.untouched()
        assert loaded(cache, namespace(), BFLOAT16, allow_lossy=True).memory == source.memory


@pytest.mark.parametrize("policy", ["tensor", "head"])
def test_static_scales_must_be_those_that_were_stored(url: str, policy: str) -> None:
    one = namespace(kv_dtype="float8_e4m3fn", scales_policy=policy)
    with KVCache.open(url) as cache:
        source = Cache(one, 32, seed=1)
        stored(cache, one, source)
        hit, target, other = cache.lookup(one, TOKENS), source.emptied(), Cache(one, 32)
        cache.load(hit, target.view(), 0, 32)
        assert target.memory == source.memory
        with pytest.raises(LayoutError, match=r"static scales \(k_scale(, v_scale)?\) differ"):
            cache.load(hit, other.view(), 0, 32)
        assert other.untouched()


@pytest.mark.parametrize("policy", ["tensor", "head"])
@pytest.mark.parametrize("other", [0, 1])
def test_static_scales_may_differ_in_one_object_only(url: str, policy: str, other: int) -> None:
    """Found before anything of that object is written. In bulk the objects before it are, and none after it."""
    one = namespace(kv_dtype="float8_e4m3fn", scales_policy=policy)
    sources = [Cache(one, 32, seed=2 if chunk == other else 1) for chunk in range(2)]
    with KVCache.open(url) as cache:
        for chunk, source in enumerate(sources):
            start, stop = chunk * CHUNK, (chunk + 1) * CHUNK
            handle = cache.store(one, TOKENS, source.view(start, stop), start, stop)
            assert handle.committed.wait(10)
            assert (handle.stored, handle.error) == (1, None)
        hit, target = cache.lookup(one, TOKENS), sources[1 - other].emptied()
        with pytest.raises(LayoutError, match=r"static scales .* differ"):
            cache.load(hit, target.view(), 0, 32)
        written = CHUNK if other == 1 and url.startswith("file") and bulk.available() else 0
        assert not written or target.same_tokens(sources[0], 0, written)
        assert target.untouched(written)
        assert cache.stats["corrupt_objects"] == 0
        for chunk, source in enumerate(sources):  # each of them alone is right for its own scales
            start, stop = chunk * CHUNK, (chunk + 1) * CHUNK
            target = source.emptied()
            cache.load(hit, target.view(start, stop), start, stop)
            assert target.same_tokens(source, start, stop)
            assert target.untouched(0, start)
            assert target.untouched(stop)


@pytest.mark.parametrize(
    ("one", "into"),
    [(namespace(), FP8), (BFLOAT16, FP8), (namespace(), namespace(kv_dtype="float8_e5m2")), (FP8, namespace())],
    ids=["scales made", "scales made of bfloat16", "no scales", "scales lost"],
)
def test_numbers_are_those_of_one_conversion_without_a_store(url: str, one: Namespace, into: Namespace) -> None:
    """Whatever lies between and wherever objects end."""
    source = exact(one if one.scales_policy == "none" else namespace())
    if one.scales_policy != "none":
        numbers, source = source, Cache(one, 32)
        convert(numbers.view(), source.view(), allow_lossy=True)
    with KVCache.open(url) as cache:
        stored(cache, one, source)
        for start, stop in ((0, 32), (5, 29), (15, 17), (16, 32)):
            target, wanted = Cache(into, 32), Cache(into, 32)
            with pytest.raises(LayoutError, match="allow_lossy"):
                cache.load(cache.lookup(one, TOKENS), target.view(start, stop), start, stop)
            assert target.untouched()
            cache.load(cache.lookup(one, TOKENS), target.view(start, stop), start, stop, allow_lossy=True)
            convert(source.view(start, stop), wanted.view(start, stop), allow_lossy=True)
            assert target.memory == wanted.memory
            assert not target.untouched(start, stop)
            assert target.untouched(0, start)
            assert target.untouched(stop)


@pytest.mark.parametrize("policy", ["none", "token", "head", "tensor"])
def test_these_tests_notice_a_byte_of_any_plane(policy: str) -> None:
    one = namespace(kv_dtype="float8_e4m3fn", scales_policy=policy)
    blank, planes = Cache(one, 32), len(one.geometry.planes)
    assert planes == (2 if policy == "none" else 4)
    for number in range(len(blank.memory)):
        other = Cache(one, 32)
        assert other.untouched()
        assert other.same_tokens(blank, 0, 32)
        other.memory[number][-1] ^= 1
        assert not other.untouched()
        assert not other.same_tokens(blank, 0, 32)


def test_scales_that_would_be_written_for_other_tokens_too_are_refused(url: str) -> None:
    one = namespace(kv_dtype="float8_e4m3fn", scales_policy="tensor")
    with KVCache.open(url) as cache:
        stored(cache, one, Cache(one, 32, seed=1))
        target = Cache(one, 32)
        geometry, buffers = one.geometry, [Buffer.of(memory) for memory in target.memory]
        pool = format("hf").pool(geometry, geometry.full, page=32, blocks=1, buffers=buffers)
        with pytest.raises(LayoutError, match="k_scale, v_scale would be written for whole blocks"):
            cache.load(cache.lookup(one, TOKENS), pool.view([0], 0, 32), 0, 32)
        assert target.untouched()


@pytest.mark.parametrize(
    ("one", "source"),
    [(BFLOAT16, namespace()), (FP8, namespace()), (FP8, BFLOAT16), (namespace(kv_dtype="float8_e4m3fn"), FP8)],
    ids=["narrower", "scales to be made", "scales to be made of bfloat16", "scales to be lost"],
)
def test_what_would_lose_something_is_not_stored(url: str, one: Namespace, source: Namespace) -> None:
    with KVCache.open(url) as cache:
        with pytest.raises(LayoutError, match="allow_lossy"):
            cache.store(one, TOKENS, Cache(source, 32, seed=1).view(), 0, 32)
        assert cache.flush(10)
        assert cache.lookup(one, TOKENS).tokens == 0
