"""How much of a prompt is taken."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvlingua.common.errors import IdentityError
from kvlingua.common.prefix import reusable_tokens

COUNTS = st.integers(0, 1 << 20)


@given(COUNTS, COUNTS, st.integers(1, 4096))
def test_whole_pages_of_what_is_stored_and_one_token_is_left(stored: int, prompt: int, page: int) -> None:
    taken = reusable_tokens(stored, prompt, page)
    bound = max(0, min(stored, prompt - 1))
    assert taken % page == 0
    assert 0 <= taken <= bound
    assert bound - taken < page


@pytest.mark.parametrize(
    ("stored", "prompt", "page", "taken"),
    [
        (960, 984, 128, 896),
        (64, 64, 1, 63),
        (64, 64, 16, 48),
        (64, 65, 64, 64),
        (0, 10, 1, 0),
        (64, 0, 1, 0),
        (64, 1, 1, 0),
    ],
)
def test_examples(stored: int, prompt: int, page: int, taken: int) -> None:
    assert reusable_tokens(stored, prompt, page) == taken


@pytest.mark.parametrize("arguments", [(-1, 1, 1), (1, -1, 1), (1, 1, 0)])
def test_impossible_counts_are_refused(arguments: tuple[int, int, int]) -> None:
    with pytest.raises(IdentityError):
        reusable_tokens(*arguments)
