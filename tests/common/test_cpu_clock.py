"""What the cache costs: counted where it is spent, and not what an engine spends beside it."""

import os
import threading
import time
from contextlib import suppress

from kvlingua.common.cpu_clock import ClockedThread, clock_methods, clocked, cpu_seconds
from kvlingua.common.metrics import REGISTRY


def burn(seconds: float) -> None:
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


@clock_methods
class Adapter:
    def outer(self) -> str:
        self.inner()
        burn(0.1)
        return "done"

    def inner(self) -> None:
        burn(0.1)

    def fails(self) -> None:
        burn(0.1)
        raise KeyError

    def sleeps(self) -> None:
        time.sleep(0.3)


def hooks() -> float:
    return cpu_seconds()["hooks"]


def test_calls_are_counted_once_and_only_while_they_compute() -> None:
    before = hooks()
    assert Adapter().outer() == "done"
    assert 0.2 <= hooks() - before < 0.3, "the inner call is counted twice"
    burn(0.2)
    Adapter().sleeps()
    assert 0.2 <= hooks() - before < 0.3, "it counts what isn't ours, or waiting"
    with suppress(KeyError):
        Adapter().fails()
    assert 0.3 <= hooks() - before < 0.4


def test_threads_are_counted_while_they_run_and_after() -> None:
    before, burned, end = cpu_seconds(), threading.Event(), threading.Event()

    def work() -> None:
        burn(0.1)
        burned.set()
        end.wait(30)

    threads = [ClockedThread(work, "kvlingua-test"), threading.Thread(target=burn, args=(0.2,))]
    for thread in threads:
        thread.start()
    assert burned.wait(30)
    assert 0.1 <= cpu_seconds()["threads"] - before["threads"] < 0.2
    end.set()
    for thread in threads:
        thread.join(30)
    assert 0.1 <= cpu_seconds()["threads"] - before["threads"] < 0.2
    assert cpu_seconds()["hooks"] == before["hooks"]


def test_a_forked_child_counts_for_itself() -> None:
    """Reading the clock of a thread that isn't there could crash it."""
    end = threading.Event()
    thread = ClockedThread(lambda: end.wait(30), "kvlingua-test")
    thread.start()
    clocked(burn)(0.05)
    child = os.fork()
    if child == 0:
        os._exit(0 if cpu_seconds() == {"hooks": 0.0, "threads": 0.0} else 1)
    assert os.waitpid(child, 0)[1] == 0
    end.set()
    thread.join(30)


def test_the_metrics_have_them() -> None:
    clocked(burn)(0.01)
    for place in ("hooks", "threads"):
        value = REGISTRY.get_sample_value("kvlingua_cpu_seconds_total", {"place": place})
        assert value is not None
    assert REGISTRY.get_sample_value("kvlingua_cpu_seconds_total", {"place": "hooks"}) >= 0.01  # type: ignore[operator]
