"""What SGLang's scheduler sees of its waiting queue while it chooses whom to admit: not those that step aside."""

from collections.abc import Callable, Sequence
from typing import Any

from kvlingua.adapters.sglang.hooks import install
from kvlingua.adapters.sglang.link import Link
from kvlingua.common.guard import Guard

CHOICE = "sglang.srt.managers.scheduler.Scheduler._get_new_batch_prefill_raw"
SLEEP = "sglang.srt.managers.scheduler.Scheduler.maybe_sleep_on_idle"


class _Visible(list[Any]):
    """Keeps apart what is appended, such as requests whose grammar is ready: the store wasn't asked for them yet."""

    def __init__(self, requests: Sequence[Any]) -> None:
        super().__init__(requests)
        self.late: list[Any] = []

    def append(self, request: Any) -> None:
        self.late.append(request)


def watch_admission(link: Link, guard: Guard) -> None:
    """Call `link.step` before each of the scheduler's choices, and keep an idle scheduler awake (--sleep-on-idle) while
    somebody steps aside. Raises UnsupportedError if that can't be done."""

    def choose(original: Callable[..., Any], scheduler: Any, *args: Any, **kwargs: Any) -> Any:
        queue = scheduler.waiting_queue
        idle = scheduler.running_batch.is_empty() and scheduler.last_batch is None and scheduler.chunked_req is None
        aside = guard.run("wait", set[int](), link.step, queue, idle)
        place = {id(request): index for index, request in enumerate(queue)}
        visible = scheduler.waiting_queue = _Visible([request for request in queue if id(request) not in aside])
        try:
            return original(scheduler, *args, **kwargs)
        finally:
            left = list(scheduler.waiting_queue)
            if aside:
                left += [request for request in queue if id(request) in aside]
                left.sort(key=lambda request: place.get(id(request), len(place)))
            scheduler.waiting_queue = left + visible.late

    def sleep(original: Callable[..., Any], scheduler: Any, *args: Any, **kwargs: Any) -> Any:
        return None if scheduler.waiting_queue else original(scheduler, *args, **kwargs)

    install({CHOICE: choose, SLEEP: sleep}, "AROUND")
