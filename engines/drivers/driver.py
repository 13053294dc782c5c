"""The parent's side: start an engine in its own process and environment, ask it, count what happened, end it."""

import json
import os
import queue
import re
import signal
import subprocess
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import unquote, urlsplit

from engines.drivers.protocol import Ask, Launch, Ready, Reply
from engines.drivers.samples import total
from engines.drivers.session import session_cpu_seconds
from engines.launch import environment, python_of

ROOT = Path(__file__).resolve().parents[2]
START_SECONDS = 300.0
ANSWER_SECONDS = 120.0
EXIT_SECONDS = 30.0
# Said when the fingerprint is known, or never will be. An engine whose logging has a form of its own says it in that.
SWITCH = re.compile(r"kvlingua: ?(?:\w+: )?(?:(?P<on>on: \w+, namespace (?P<namespace>[0-9a-f]+), )|off: )")
SWITCH_SECONDS = 120.0


class DriverError(Exception):
    """The driver failed, died or didn't answer in time; the message ends with the tail of its log."""


class Driver:
    """One engine in a process of its own; a context manager that leaves no process behind. With cache it waits for the
    line that says that kvlingua is on, or off (`switched_on`, `namespace`): before it there are no hits.

    `engine`: its name, or with a version that isn't the default one, `vllm==0.31.0`. `url`: the store (KVLINGUA_URL).
    `settings`: further environment variables. `log`: the file that takes the engine's output; kvlingua's metrics go to
    a folder beside it. `python`: another one than that of the engine's own environment. Remaining keyword arguments are
    those of `Launch`.
    """

    def __init__(
        self,
        engine: str,
        model: Path | str,
        /,  # so that `engine=` can mean the engine's own arguments
        *,
        log: Path,
        url: str | None = None,
        settings: Mapping[str, str] | None = None,
        python: Path | None = None,
        **launch: Any,
    ) -> None:
        self.name = engine
        self.launch = Launch(str(model), **launch)
        self.log = log
        self.url = url
        self._python = python
        self.metrics_dir = log.with_suffix(".metrics")
        self.metrics_dir.mkdir(parents=True, exist_ok=True)
        self._settings = {
            "KVLINGUA_METRICS_DIR": str(self.metrics_dir),
            "KVLINGUA_LOOKUP_TIMEOUT_S": "10",  # a busy machine's slow moment is no miss
            **({"KVLINGUA_URL": url} if url else {}),
            **(settings or {}),
        }
        self.switched_on = False
        self.namespace: str | None = None  # what the line says of it, its beginning
        self._next = 0
        self._lines: queue.Queue[str | None] = queue.Queue()

    def __enter__(self) -> "Driver":
        variables = environment(self.name, self._settings)
        variables["PYTHONPATH"] = os.pathsep.join([variables["PYTHONPATH"], str(ROOT)])
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [
                    str(self._python or python_of(self.name)),
                    "-m",
                    f"engines.drivers.{self.name.partition('==')[0]}",
                    json.dumps(asdict(self.launch)),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=variables,
                cwd=self.log.parent,
                text=True,
                start_new_session=True,
            )
        threading.Thread(target=self._read, daemon=True).start()
        try:
            first = self._line(START_SECONDS)
            if first.get("event") != "ready":
                raise self._error(f"did not start: {first.get('error', first)}")
            if self.launch.cache:
                self._wait_for_switch()
        except BaseException:
            self._kill()
            raise
        self.ready = Ready(first["version"], first["page"], first["seconds"])
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None and self._process.poll() is None:
                self.exit()
        finally:
            self._kill()

    def generate(self, *asks: Ask, timeout: float = ANSWER_SECONDS) -> Reply:
        """Answer all `asks`, handed over together."""
        return Reply.from_json(
            self._command({"command": "generate", "asks": [asdict(ask) for ask in asks]}, timeout)["reply"]
        )

    def call(self, method: str, /, **arguments: Any) -> Any:
        """Something only this engine knows, e.g. vLLM's reset_prefix_cache."""
        return self._command({"command": "call", "method": method, "arguments": arguments}, ANSWER_SECONDS).get("value")

    def exit(self) -> None:
        """End the engine in good order and wait for it."""
        self._command({"command": "exit"}, EXIT_SECONDS)
        self._process.wait(EXIT_SECONDS)

    def pause(self) -> None:
        """Stop all its processes where they are: an idle engine may still poll."""
        os.killpg(self._process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let them go on."""
        os.killpg(self._process.pid, signal.SIGCONT)

    def cpu_seconds(self) -> float:
        """CPU time of all its processes so far, of those that have ended as well."""
        return session_cpu_seconds(self._process.pid)

    def log_text(self) -> str:
        return self.log.read_text(errors="replace")

    def metric(self, name: str, **labels: str) -> float:
        """Sum of kvlingua's samples of that name whose labels include `labels`, over all processes of the engine."""
        return total(self.metrics_dir, name, labels)

    def metric_reaches(self, name: str, at_least: float, *, timeout: float = 15.0, **labels: str) -> bool:
        """Wait until `metric` is at least that (its files are written about once a second)."""
        return _until(lambda: self.metric(name, **labels) >= at_least, timeout)

    def objects(self) -> int:
        """How many objects the store's folder holds (file:// only)."""
        if self.url is None or not self.url.startswith("file://"):
            raise DriverError(f"objects are counted in a folder, and the store is {self.url}")
        return sum(1 for _ in Path(unquote(urlsplit(self.url).path)).rglob("*.safetensors"))

    def wait_objects(self, count: int, timeout: float = 30.0) -> None:
        """Wait until the store's folder holds at least `count` objects."""
        if not _until(lambda: self.objects() >= count, timeout):
            raise self._error(f"{self.objects()} objects after {timeout} s, expected {count}")

    def _wait_for_switch(self) -> None:
        if not _until(lambda: SWITCH.search(self.log_text()), SWITCH_SECONDS):
            raise self._error(f"said neither that kvlingua is on nor that it is off within {SWITCH_SECONDS:.0f} s")
        said = SWITCH.search(self.log_text())
        assert said is not None
        self.switched_on, self.namespace = said["on"] is not None, said["namespace"]

    def _command(self, command: dict[str, Any], timeout: float) -> dict[str, Any]:
        self._next += 1
        command["id"] = self._next
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(command) + "\n")
            self._process.stdin.flush()
        except OSError as error:
            raise self._error(f"is gone ({error})") from error
        answer = self._line(timeout)
        if "error" in answer or answer.get("id") != self._next:
            raise self._error(f"{command['command']} failed: {answer.get('error', answer)}")
        return answer

    def _line(self, timeout: float) -> dict[str, Any]:
        try:
            line = self._lines.get(timeout=timeout)
        except queue.Empty:
            raise self._error(f"no answer after {timeout:.0f} s") from None
        if line is None:
            raise self._error(f"ended with status {self._process.wait(EXIT_SECONDS)}")
        value: dict[str, Any] = json.loads(line)
        return value

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def _error(self, what: str) -> DriverError:
        tail = "\n".join(self.log_text().splitlines()[-30:])
        return DriverError(f"{self.name} driver: {what}\n--- end of {self.log} ---\n{tail}")

    def _kill(self) -> None:
        """End the whole session: engines start processes of their own."""
        with suppress(ProcessLookupError):
            self.resume()
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self._process.pid, number)
            except ProcessLookupError:
                break
            if number == signal.SIGTERM:
                _until(lambda: self._process.poll() is not None, 3.0)
        self._process.wait(EXIT_SECONDS)


def _until(true: Any, timeout: float) -> bool:
    end = time.monotonic() + timeout
    while not true():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True
