"""Which blocks a request has, put together from what vLLM 0.28 says of each step: as many as it has, in order."""

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvlingua.adapters.vllm.block_tables import BlockTables, tables_of

Blocks = list[int]


def step(
    new: dict[str, Blocks] | None = None,
    more: dict[str, Blocks | None] | None = None,
    resumed: dict[str, Blocks] | None = None,
    finished: tuple[str, ...] = (),
) -> Any:
    """A SchedulerOutput, as far as it is read; one KV cache group."""
    cached = {**(more or {}), **(resumed or {})}
    return SimpleNamespace(
        scheduled_new_reqs=[
            SimpleNamespace(req_id=request_id, block_ids=(blocks,)) for request_id, blocks in (new or {}).items()
        ],
        scheduled_cached_reqs=SimpleNamespace(
            req_ids=list(cached),
            new_block_ids=[None if blocks is None else (blocks,) for blocks in cached.values()],
            resumed_req_ids=set(resumed or {}),
        ),
        finished_req_ids=set(finished),
    )


steps = st.lists(
    st.tuples(
        st.sampled_from(["nothing", "more", "resumed", "ends"]), st.lists(st.integers(0, 99), min_size=1, max_size=4)
    ),
    max_size=12,
)


@given(first=st.lists(st.integers(0, 99), max_size=4), history=steps, other=steps)
def test_two_requests(first: Blocks, history: list[tuple[str, Blocks]], other: list[tuple[str, Blocks]]) -> None:
    """Each has what it was given last as a whole and what was added since, whatever happens to the other one."""
    tables = BlockTables()
    tables.note(step(new={"a": list(first), "b": list(first)}))
    expected = {"a": list(first), "b": list(first)}
    for name, events in (("a", history), ("b", other)):
        for what, blocks in events:
            finished = what == "ends"
            if finished:
                tables.note(step(finished=(name,)))
                with pytest.raises(KeyError):
                    tables.of(name)
                tables.note(step(new={name: list(blocks)}))
            elif what == "resumed":
                tables.note(step(resumed={name: list(blocks)}))
            else:
                tables.note(step(more={name: list(blocks) if what == "more" else None}))
            expected[name] = {"nothing": expected[name], "more": expected[name] + blocks}.get(what, list(blocks))
            assert {one: tables.of(one) for one in expected} == {one: (tuple(expected[one]),) for one in expected}


def test_what_vllm_hands_over_is_not_kept() -> None:
    tables, given = BlockTables(), [1, 2]
    tables.note(step(new={"a": given}))
    tables.note(step(more={"a": [3]}))
    given.append(9)
    assert tables.of("a") == ((1, 2, 3),)


def test_a_request_with_the_id_of_one_that_has_ended() -> None:
    """In one and the same step."""
    tables = BlockTables()
    tables.note(step(new={"a": [1, 2]}))
    tables.note(step(new={"a": [7]}, finished=("a",)))
    tables.note(step(more={"a": [8]}))
    assert tables.of("a") == ((7, 8),)


def test_blocks_for_a_request_that_nobody_knows() -> None:
    with pytest.raises(KeyError):
        BlockTables().note(step(more={"a": [1]}))


def test_later_releases_are_asked() -> None:
    state = SimpleNamespace(get_block_ids=lambda request_id: ([4, 5], [6]) if request_id == "a" else ())
    assert tables_of(SimpleNamespace(kv_connector_block_state=state))("a") == ((4, 5), (6,))
