"""The guard, the log lines and the metrics it makes."""

import logging
import subprocess
import sys
import time
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from kvlingua.common import log, metrics
from kvlingua.common.cache import KVCache
from kvlingua.common.config import Config
from kvlingua.common.errors import ContainerError, LoadError, StoreError, StoreTimeout, UnsupportedError
from kvlingua.common.guard import Guard, capture, reason_of
from tests.common.kv import Cache, namespace


@pytest.fixture(autouse=True)
def nothing_said_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "_seen", {})


def fail(error: BaseException) -> int:
    raise error


def refusals(adapter: str, reason: str) -> float:
    return metrics.REGISTRY.get_sample_value("kvlingua_refusals_total", {"adapter": adapter, "reason": reason}) or 0


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (StoreTimeout("x"), "store_timeout"),
        (StoreError("x"), "store"),
        (LoadError("x"), "load"),
        (UnsupportedError("sliding_window", "x"), "sliding_window"),
        (ContainerError("checksum", "x"), "checksum"),
        (ZeroDivisionError("x"), "zero_division"),
        (KeyError("x"), "key"),
        (OSError("x"), "os"),
    ],
)
def test_any_error_before_the_promise_is_a_counted_miss(
    error: Exception, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert reason_of(error) == reason
    before = refusals("test", reason)
    guard = Guard("test")
    with caplog.at_level(logging.WARNING):
        for _ in range(5):
            assert guard.run("lookup", 42, fail, error) == 42
    assert refusals("test", reason) == before + 5
    lines = [record.getMessage() for record in caplog.records if "lookup failed" in record.getMessage()]
    assert len(lines) == 1
    assert reason in lines[0]
    assert "\n" not in lines[0]


def test_what_works_passes_through() -> None:
    guard = Guard("test")
    assert guard.run("lookup", 0, lambda a, b: a + b, 2, b=3) == 5
    assert guard.promised("load", lambda: None)


def test_after_the_promise_the_caller_is_told(caplog: pytest.LogCaptureFixture) -> None:
    before = refusals("test", "load")
    with caplog.at_level(logging.WARNING):
        assert Guard("test").promised("load", fail, LoadError("gone")) is False
        assert Guard("test").promised("load", fail, ZeroDivisionError("a defect")) is False
    assert refusals("test", "load") == before + 1
    assert "recomputing: gone" in caplog.text
    assert "Traceback" in caplog.text  # of the defect: a person needs to see where


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_what_ends_a_process_is_not_caught(kind: type[BaseException]) -> None:
    with pytest.raises(kind):
        Guard("test").run("lookup", 0, fail, kind())
    with pytest.raises(kind):
        Guard("test").promised("load", fail, kind())


def test_an_outcome_is_carried_to_another_thread() -> None:
    assert capture(lambda: 3)() == 3
    with pytest.raises(LoadError, match="gone"):
        capture(lambda: fail(LoadError("gone")))()


def test_a_line_is_said_once_or_seldom(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    with caplog.at_level(logging.INFO):
        assert log.once("a", logging.INFO, "100% once")
        assert not log.once("a", logging.INFO, "100% once")
        assert log.once("b", logging.INFO, "seldom", every_s=60)
        clock[0] += 59
        assert not log.once("b", logging.INFO, "seldom", every_s=60)
        clock[0] += 2
        assert log.once("b", logging.INFO, "seldom", every_s=60)
        assert not log.once("a", logging.INFO, "100% once")
    assert caplog.messages == ["100% once", "seldom", "seldom"]


@pytest.mark.parametrize(
    ("setup", "shown"),
    [
        ("", "kvlingua: INFO: on\nkvlingua: WARNING: off\n"),
        ("logging.basicConfig(format='engine %(message)s')", "engine on\nengine off\n"),
    ],
)
def test_lines_are_visible_exactly_once(setup: str, shown: str) -> None:
    program = f"""
import logging
{setup}
from kvlingua.common import log
log.ensure_visible("info")
log.ensure_visible("info")
log.logger.debug("hidden")
log.logger.info("on")
log.logger.warning("off")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr == shown


def samples(folder: Path) -> dict[str, float]:
    """Name and labels of each sample -> value, over all files."""
    found: dict[str, float] = {}
    for path in folder.glob("kvlingua-*.prom"):
        for family in text_string_to_metric_families(path.read_text()):
            for sample in family.samples:
                labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
                found[f"{sample.name}{{{labels}}}"] = sample.value
    return found


def test_metrics_are_written_while_it_runs_and_at_the_end(tmp_path: Path) -> None:
    program = f"""
import sys
from kvlingua.common.cache import KVCache
from kvlingua.common.config import Config
from kvlingua.common.guard import Guard
from tests.common.kv import Cache, namespace
cache = KVCache.open(Config(url="file://{tmp_path}/store", metrics_dir="{tmp_path}/metrics"))
tokens = list(range(96))
cache.lookup(namespace(), tokens)
cache.store(namespace(), tokens, Cache(namespace(), 96, seed=1).view(), 0, 96)
assert cache.flush(10)
cache.load(cache.lookup(namespace(), tokens), Cache(namespace(), 50).view(), 0, 50)
print("ready", flush=True)
sys.stdin.readline()
Guard("hf").run("lookup", None, lambda: 1 / 0)
"""
    clone = Path(__file__).parents[2]
    process = subprocess.Popen(
        [sys.executable, "-c", program], cwd=clone, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    deadline = time.monotonic() + 10
    while samples(tmp_path / "metrics").get("kvlingua_tokens_reused_total{store=file}") != 50:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.communicate("\n", timeout=30)
    assert process.returncode == 0
    found = samples(tmp_path / "metrics")
    assert found["kvlingua_lookups_total{store=file}"] == 2
    assert found["kvlingua_hits_total{store=file}"] == 1
    assert found["kvlingua_tokens_stored_total{store=file}"] == 96
    assert found["kvlingua_bytes_total{direction=written,store=file}"] > 96 * 4 * 20 * 12
    assert found["kvlingua_bytes_total{direction=read,store=file}"] > 64 * 4 * 20 * 12
    assert found["kvlingua_refusals_total{adapter=hf,reason=zero_division}"] == 1
    assert found["kvlingua_seconds_count{operation=load,store=file}"] == 1
    assert not list((tmp_path / "metrics").glob(".*"))


def test_a_folder_that_cannot_take_metrics_changes_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    config = Config(url="memory://", metrics_dir=tmp_path / "file" / "below")
    with caplog.at_level(logging.WARNING), KVCache.open(config) as cache:
        handle = cache.store(namespace(), list(range(96)), Cache(namespace(), 96, seed=1).view(), 0, 96)
        assert handle.committed.wait(10)
        assert cache.lookup(namespace(), list(range(96))).tokens == 96
    assert "metrics can't be written" in caplog.text
