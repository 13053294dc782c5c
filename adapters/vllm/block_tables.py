"""Which blocks of vLLM's KV cache each request has."""

from collections.abc import Callable
from typing import Any, TypeAlias

Tables: TypeAlias = tuple[tuple[int, ...], ...]  # block numbers, of each KV cache group, in the order of the tokens


def tables_of(scheduled: Any) -> Callable[[str], Tables]:
    """As the SchedulerOutput of a step answers when it is asked, from vLLM 0.30 on."""
    state = scheduled.kv_connector_block_state
    return lambda request_id: tuple(tuple(table) for table in state.get_block_ids(request_id))


class BlockTables:
    """For vLLM 0.28, which only says what each step adds."""

    def __init__(self) -> None:
        self._tables: dict[str, list[list[int]]] = {}

    def note(self, scheduled: Any) -> bool:
        """Read a step's SchedulerOutput, before `of` is asked. To be called for every step. True, if nothing is raised;
        after an exception the tables can't be trusted."""
        for request_id in scheduled.finished_req_ids:  # before this step, in which another one may have its id
            self._tables.pop(request_id, None)
        for new in scheduled.scheduled_new_reqs:
            self._tables[new.req_id] = [list(table) for table in new.block_ids]
        cached = scheduled.scheduled_cached_reqs
        for request_id, more in zip(cached.req_ids, cached.new_block_ids, strict=True):
            if more is None:
                continue
            if request_id in cached.resumed_req_ids:  # after a preemption: other blocks, all of them
                self._tables[request_id] = [list(table) for table in more]
            else:
                for table, blocks in zip(self._tables[request_id], more, strict=True):
                    table.extend(blocks)
        return True

    def of(self, request_id: str) -> Tables:
        return tuple(tuple(table) for table in self._tables[request_id])
