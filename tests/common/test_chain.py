"""Digests of chunks: a chunk's names its whole prefix."""

import hashlib
import struct
from array import array

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kvlingua.common.errors import IdentityError
from kvlingua.common.identity.chain import chain_digests, request_seed

TOKENS = st.lists(st.integers(0, (1 << 32) - 1), max_size=40)
SIZES = st.integers(1, 9)
SEEDS = st.just(b"") | st.binary(min_size=32, max_size=32)
PARTS = st.none() | st.text(max_size=5)


@given(TOKENS, SIZES, SEEDS)
def test_equals_the_page_hashes_of_sglang(tokens: list[int], size: int, seed: bytes) -> None:
    """sha256(previous || tokens as u32 little-endian), stated independently; only whole pages."""
    expected, previous = [], seed
    for start in range(0, len(tokens) - size + 1, size):
        previous = hashlib.sha256(previous + struct.pack(f"<{size}I", *tokens[start : start + size])).digest()
        expected.append(previous)
    assert chain_digests(tokens, size, seed) == expected


@given(TOKENS, TOKENS, SIZES, SEEDS)
def test_a_prefix_has_a_prefix_of_the_digests(tokens: list[int], more: list[int], size: int, seed: bytes) -> None:
    whole, part = chain_digests(tokens + more, size, seed), chain_digests(tokens, size, seed)
    assert whole[: len(part)] == part
    assert len(whole) == len(tokens + more) // size


@given(st.lists(st.integers(0, 1 << 20), min_size=1, max_size=30), st.data())
def test_one_other_token_changes_its_chunk_and_all_behind_it(tokens: list[int], data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(tokens) - 1))
    changed = tokens.copy()
    changed[place] += 1
    before, after = chain_digests(tokens, 3), chain_digests(changed, 3)
    assert before[: place // 3] == after[: place // 3]
    assert not set(before[place // 3 :]) & set(after[place // 3 :])


@given(PARTS, PARTS, PARTS, PARTS)
def test_seeds_are_equal_only_for_equal_parts(
    one: str | None, two: str | None, three: str | None, four: str | None
) -> None:
    assert (request_seed(one, two) == request_seed(three, four)) == ((one, two) == (three, four))


def test_a_seed_separates_whole_chains() -> None:
    assert request_seed(None, None) == b""
    tokens = range(64)
    plain, salted = chain_digests(tokens, 8), chain_digests(tokens, 8, request_seed(None, "salt"))
    assert not set(plain) & set(salted)


def test_the_kinds_of_sequence_that_engines_have() -> None:
    expected = chain_digests([1, 2, 3, 4], 2)
    for tokens in ((1, 2, 3, 4), array("q", [1, 2, 3, 4]), array("i", [1, 2, 3, 4]), range(1, 5)):
        assert chain_digests(tokens, 2) == expected
    assert chain_digests(torch.arange(1, 5).tolist(), 2) == expected


@pytest.mark.parametrize("tokens", [[-1], [1 << 32], [1.5], ["1"], [None], b"1234", bytearray(4), "1234", [1 << 80]])
def test_what_is_no_token_is_refused(tokens: list[int]) -> None:
    with pytest.raises(IdentityError, match="token ids"):
        chain_digests(tokens, 1)


def test_impossible_sizes_and_seeds_are_refused() -> None:
    with pytest.raises(IdentityError, match="at least one token"):
        chain_digests([1], 0)
    with pytest.raises(IdentityError, match="32 bytes"):
        chain_digests([1], 1, b"short")
    with pytest.raises(IdentityError, match="Unicode"):
        request_seed("\ud800", None)
