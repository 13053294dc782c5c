"""The names of objects."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvlingua.common.errors import IdentityError
from kvlingua.common.identity.keys import ObjectKey, namespace_key, object_key, parse_key
from kvlingua.layouts.geometry import Extent

HEX = st.binary(min_size=32, max_size=32).map(bytes.hex)
DIGESTS = st.binary(min_size=32, max_size=32)
RANGES = st.tuples(st.integers(0, 1000), st.integers(1, 1000)).map(lambda two: (two[0], two[0] + two[1]))
EXTENTS = st.tuples(RANGES, RANGES).map(lambda two: Extent(*two[0], *two[1]))
KEY = "ab" * 32 + "/" + "cd" * 32 + "-h0-4-l2-10.safetensors"


@given(HEX, DIGESTS, EXTENTS)
def test_a_key_says_what_it_was_made_of(namespace: str, chain: bytes, extent: Extent) -> None:
    key = object_key(namespace, chain, extent)
    assert parse_key(key) == ObjectKey(namespace, chain, extent)
    assert str(parse_key(key)) == key


@given(HEX, DIGESTS, EXTENTS, HEX, DIGESTS, EXTENTS)
def test_different_objects_have_different_keys(
    one: str, first: bytes, here: Extent, two: str, second: bytes, there: Extent
) -> None:
    assert (object_key(one, first, here) == object_key(two, second, there)) == (
        (one, first, here) == (two, second, there)
    )


def test_the_form() -> None:
    assert object_key("ab" * 32, b"\xcd" * 32, Extent(0, 4, 2, 10)) == KEY
    assert namespace_key("ab" * 32) == "ab" * 32 + "/namespace.json"


@pytest.mark.parametrize(
    "key",
    [
        "",
        "ab" * 32,
        namespace_key("ab" * 32),
        KEY + "\n",
        KEY.upper(),
        KEY.replace("h0-4", "h00-4"),
        KEY.replace("h0-4", "h4-4"),
        KEY.replace("h0-4", "h4-0"),
        KEY.replace("l2-10", "l-2-10"),
        KEY.replace("h0-4", "h0-9999999"),
        KEY.replace("h0-4", "h\u0660-4"),
        KEY.replace("/", "/../"),
        "/" + KEY,
        KEY + ".tmp",
        KEY[1:],
    ],
)
def test_what_is_no_key_is_none(key: str) -> None:
    assert parse_key(key) is None


@pytest.mark.parametrize("digest", ["", "AB" * 32, "ab" * 31, "../" + "ab" * 31, "zz" * 32])
def test_digests_that_are_none_are_refused(digest: str) -> None:
    with pytest.raises(IdentityError):
        namespace_key(digest)
    with pytest.raises(IdentityError):
        object_key(digest, bytes(32), Extent(0, 1, 0, 1))
    with pytest.raises(IdentityError):
        object_key("ab" * 32, bytes(31), Extent(0, 1, 0, 1))
