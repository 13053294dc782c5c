"""SGLang's waiting requests: those whose answer or load isn't there yet step aside, so that the others go on.

`step` runs once before SGLang chooses whom to admit, on every rank at the same step, with the same queue. Everything it
decides follows from that queue, from what was decided before, and from what the ranks agree on; so the ranks come to
the same collectives in the same order: one in a step in which somebody waits, and one in `begin`, which SGLang's
admission calls for the same request on every rank.

The memory that a load is given is held by the waiting request, and counts as memory that SGLang may take back: its
radix cache asks for it (`give_back`) before anything of a running request would have to go. It is held by all ranks
from the same step to the same step, so that their allocators stay alike. Which load has ended is no reason to free
anything before all ranks have agreed that it has.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import wait
from typing import Any

import torch

from kvlingua.adapters.sglang.link import FAILED, PENDING, Link
from kvlingua.adapters.sglang.memo import MOST_STOOD, Load, Memo, Stage
from kvlingua.common.cpu_clock import clock_methods

IDLE_WAIT_S = 0.002  # with nothing else to do, so long a step waits for the first answer instead of spinning


@clock_methods
class Waiting:
    """free: gives rows [token] back to SGLang's allocator."""

    def __init__(self, link: Link, free: Callable[[torch.Tensor], object]) -> None:
        self._link = link
        self._free = free
        self._holders: list[tuple[Any, Memo]] = []  # requests and memos with a load, in the order these began

    @property
    def held(self) -> int:
        """How many tokens' memory the loads hold."""
        return sum(len(memo.load.slots) for _, memo in self._holders if memo.load is not None)

    def step(self, queue: Sequence[Any], idle: bool) -> set[int]:
        """The ids (Python's) of the requests in SGLang's queue that step aside in this step.

        idle: nothing is computed, so that there is nothing but answers to wait for.
        """
        link = self._link
        link.sweep()
        self._drop_those_gone(queue)
        if link.off or not link.loads:
            return set()
        asked: list[tuple[Any, Memo]] = []
        aside: set[int] = set()
        for request in queue:
            memo = link.memo(request)
            if memo.reason is not None:
                continue
            length = len(request.origin_input_ids) + len(request.output_ids)
            if memo.load is None and (memo.stage is Stage.NEW or len(memo.asked) != length):
                link.ask(request, memo)  # it is new, or SGLang had retracted it, and it has come back longer
            if memo.stage in (Stage.ASKED, Stage.LOADING):
                asked.append((request, memo))
            elif (memo.begins and self._loading(memo)) or self._under_way(memo.behind):
                aside.add(id(request))
            else:
                memo.begins, memo.behind = [], []
        if not asked:
            return aside
        loading = [memo for _, memo in asked if memo.stage is Stage.LOADING]
        if idle and (loading or len(asked) + len(aside) == len(queue)):  # another may wait for memory that a load holds
            _wait(loading[0] if loading else asked[0][1])
        agreed = link.ranks.agree([link.said(memo) for _, memo in asked])
        for (request, memo), least in zip(asked, agreed, strict=True):
            self._decided(memo, least)
            if memo.stage in (Stage.ASKED, Stage.LOADING):
                aside.add(id(request))
        return aside

    def begin(self, request: Any, start: int, stop: int, slots: torch.Tensor | None) -> bool:
        """Load the tokens [start, stop) of a request that could be admitted into the rows `slots` [token].

        True: it steps aside until they are loaded. False, on all ranks: it is computed, and the rows were freed.
        """
        memo = self._link.memo(request)
        if self._link.begin(memo, start, stop, slots):
            self._holders.append((request, memo))
            return True
        if slots is not None:
            self._free(slots)
        return False

    def beside(self, request: Any, start: int, stop: int) -> bool:
        """Whether half or more of the tokens [start, stop), which are stored, are being loaded for another request.

        Then this one steps aside too, until they are there; SGLang's prefix cache will have them.
        """
        memo = self._link.memo(request)
        memo.begins = memo.digests[: max(1, (start + stop) // 2 // self._link.chunk_tokens)]
        return bool(memo.begins) and self._loading(memo)

    def stand_behind(self, request: Any) -> None:
        """The request lacks memory that loads hold: it steps aside until one of them has ended.

        When it did so MOST_STOOD times it stays in front, so that what overtakes it can't have that memory for ever.
        """
        memo = self._link.memo(request)
        if memo.stood < MOST_STOOD:
            memo.stood += 1
            memo.behind = [other.load for _, other in self._holders if other.load and other.stage is Stage.LOADING]

    def take(self, request: Any, start: int, stop: int) -> torch.Tensor | None:
        """The rows [token] in which the tokens [start, stop) of an admitted request lie by now; they are the caller's.

        None if it has none, or others, which are freed.
        """
        memo = self._link.memo(request)
        load = memo.load
        if load is None or memo.stage is not Stage.LOADED:
            return None
        self._let_go(memo)
        memo.stage = Stage.KNOWN
        if not load.start <= start < stop <= load.stop:
            self._free(load.slots)
            return None
        first, last = start - load.start, stop - load.start
        for rest in (load.slots[:first], load.slots[last:]):
            if len(rest):
                self._free(rest)
        return load.slots[first:last]

    def give_back(self, tokens: int, *, loaded: bool = False) -> int:
        """Free the memory of loads, the latest first, until that many tokens' are freed; how many were.

        loaded: only of those that have ended. Such a request may be promised the same again.
        """
        freed = 0
        for _, memo in reversed(self._holders):
            if freed >= tokens:
                break
            if not loaded or memo.stage is Stage.LOADED:
                freed += self._drop(memo)
                memo.stage = Stage.KNOWN
        return freed

    def _drop_those_gone(self, queue: Sequence[Any]) -> None:
        """Aborted ones, and those that were admitted without what was loaded for them."""
        if not self._holders:
            return
        there = set(map(id, queue))
        for request, memo in list(self._holders):
            if self._link.off or id(request) not in there:
                self._drop(memo)
                memo.stage = Stage.SETTLED

    def _loading(self, waits: Memo) -> bool:
        """Whether a load is under way that goes as far, of a text that begins like `waits.begins`, with its adapter. Of
        the digests only those are looked at that all ranks have: of what they have agreed to be stored."""
        begins = waits.begins
        tokens = len(begins) * self._link.chunk_tokens
        return any(
            memo.stage is Stage.LOADING
            and memo.load is not None
            and memo.load.stop >= tokens
            and memo.adapter == waits.adapter
            and memo.digests[: len(begins)] == begins
            for _, memo in self._holders
        )

    def _under_way(self, loads: Sequence[Load]) -> bool:
        """Whether these are loads, and all still under way."""
        now = [id(memo.load) for _, memo in self._holders if memo.stage is Stage.LOADING]
        return bool(loads) and all(id(load) in now for load in loads)

    def _decided(self, memo: Memo, least: int) -> None:
        if least == PENDING:
            return
        if memo.stage is Stage.ASKED:
            self._link.answered(memo, least)
            return
        load = memo.load
        self._link.loaded(memo, success=least != FAILED)
        if memo.stage is not Stage.LOADED and load is not None:
            self._holders = [one for one in self._holders if one[1] is not memo]
            self._free(load.slots)

    def _drop(self, memo: Memo) -> int:
        load = self._let_go(memo)
        if load is None:
            return 0
        load.handle.cancel()
        self._free(load.slots)
        return len(load.slots)

    def _let_go(self, memo: Memo) -> Load | None:
        self._holders = [one for one in self._holders if one[1] is not memo]
        load, memo.load = memo.load, None
        return load


def _wait(memo: Memo) -> None:
    if memo.question is not None:
        wait([memo.question], IDLE_WAIT_S)
    elif memo.load is not None:
        memo.load.handle.wait(IDLE_WAIT_S)
