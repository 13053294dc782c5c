"""Which heads and layers a rank holds, and who writes them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvlingua.common.errors import UnsupportedError
from kvlingua.common.identity.ranks import STAGE_RULES, Split
from kvlingua.layouts.geometry import Extent

# As vLLM 0.32 and SGLang 0.5.23 say themselves (tests/engines/test_ranks.py asks them for many more).
STAGES = {
    ("vllm", 32, 4): (8, 8, 8, 8),
    ("vllm", 30, 4): (7, 8, 8, 7),
    ("vllm", 31, 4): (8, 8, 8, 7),
    ("vllm", 29, 4): (7, 7, 8, 7),
    ("vllm", 31, 2): (16, 15),
    ("sglang", 32, 4): (8, 8, 8, 8),
    ("sglang", 30, 4): (7, 7, 8, 8),
    ("sglang", 31, 4): (7, 8, 8, 8),
    ("sglang", 29, 4): (7, 7, 7, 8),
    ("sglang", 31, 2): (15, 16),
}


@pytest.mark.parametrize(("rule", "layers", "stages"), STAGES)
def test_layers_of_pipeline_stages(rule: str, layers: int, stages: int) -> None:
    assert Split.of(8, layers, 1, stages, rule).stages == STAGES[rule, layers, stages]


def test_heads_are_divided() -> None:
    split = Split.of(8, 6, tensor=4, pipeline=2)
    assert split.extent(0, 0) == Extent(0, 2, 0, 3)
    assert split.extent(3, 1) == Extent(6, 8, 3, 6)
    assert all(split.writes(rank) for rank in range(4))


def test_heads_are_replicated_and_the_lowest_rank_writes() -> None:
    split = Split.of(2, 4, tensor=8)
    assert [split.extent(rank, 0).head_start for rank in range(8)] == [0, 0, 0, 0, 1, 1, 1, 1]
    assert [split.writes(rank) for rank in range(8)] == [True, False, False, False] * 2


def test_a_latent_is_on_every_rank_and_the_first_writes() -> None:
    split = Split.of(1, 4, tensor=8, pipeline=2)
    assert {split.extent(rank, 1) for rank in range(8)} == {Extent(0, 1, 2, 4)}
    assert [rank for rank in range(8) if split.writes(rank)] == [0]


@given(
    st.sampled_from((1, 2, 4, 5, 8, 18, 25, 32)),
    st.integers(1, 40),
    st.sampled_from((1, 2, 4, 5, 8, 16)),
    st.sampled_from((1, 2, 3, 4, 8)),
    st.sampled_from(sorted(STAGE_RULES)),
)
def test_writers_hold_everything_once(heads: int, layers: int, tensor: int, pipeline: int, rule: str) -> None:
    if (heads % tensor and tensor % heads) or pipeline > layers:
        with pytest.raises(UnsupportedError):
            Split.of(heads, layers, tensor, pipeline, rule)
        return
    split = Split.of(heads, layers, tensor, pipeline, rule)
    cells = [
        (head, layer)
        for extent in split.extents()
        for head in range(extent.head_start, extent.head_stop)
        for layer in range(extent.layer_start, extent.layer_stop)
    ]
    assert sorted(cells) == [(head, layer) for head in range(heads) for layer in range(layers)]
    held = {split.extent(rank, stage) for rank in range(tensor) for stage in range(pipeline)}
    assert held == set(split.extents())
    assert max(split.stages) - min(split.stages) <= 1


def test_what_no_engine_does_is_refused_with_the_arithmetic() -> None:
    with pytest.raises(UnsupportedError) as refused:
        Split.of(25, 32, tensor=2)
    assert str(refused.value) == (
        "25 kv heads can't be shared evenly by TP 2: use a size that divides 25, or a multiple of it"
    )
    with pytest.raises(UnsupportedError, match="3 layers can't be shared by 4 pipeline stages"):
        Split.of(8, 3, pipeline=4)
    with pytest.raises(UnsupportedError, match="can't be shared evenly by TP 0"):
        Split.of(8, 3, tensor=0)
