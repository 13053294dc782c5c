"""An engine as an HTTP server in processes of its own, which can be killed and started again."""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from demo.job import MODEL
from engines.drivers.samples import total
from engines.drivers.session import session_of
from engines.launch import environment, python_of

START_SECONDS = 400.0
LONGEST = 2048  # tokens of a prompt and its answer
ON = re.compile(r"kvlingua: (?:\w+: )?on: ")
CONNECTOR = {"kv_connector": "KVLingua", "kv_role": "kv_both"}
# As few slots as four requests need, so that the engines' own prefix caches forget and the store is asked.
ARGUMENTS = {
    "vllm": """-m vllm.entrypoints.openai.api_server --model {model} --served-model-name model --dtype float32 --host
        127.0.0.1 --port {port} --block-size 32 --max-model-len {longest} --max-num-seqs 4 --enforce-eager --seed 0
        --num-gpu-blocks-override 160 --max-num-batched-tokens 512 --kv-transfer-config {connector}""",
    "sglang": """-m sglang.launch_server --model-path {model} --served-model-name model --dtype float32 --host 127.0.0.1
        --port {port} --page-size 16 --context-length {longest} --max-total-tokens 5120 --max-running-requests 4
        --mem-fraction-static 0.6 --device cpu --attention-backend torch_native --disable-cuda-graph --random-seed 0
        --chunked-prefill-size 512 --radix-cache-backend kvlingua --sleep-on-idle""",
}


class ServerError(Exception):
    """It didn't start, or ended by itself; the message ends with the tail of its log."""


class Server:
    """`engine` behind http://127.0.0.1:`port`. Every start is a new session of processes with a log of its own."""

    def __init__(self, name: str, engine: str, folder: Path, url: str, max_bytes: int) -> None:
        self.name = name
        self.engine = engine
        self.starts = 0
        self.healthy_since = 0.0  # time.monotonic(); 0: not healthy
        self.metrics = folder / f"{name}.metrics"
        self.metrics.mkdir()
        self.port = _free_port()
        self._folder = folder
        self._lock = threading.Lock()
        self._closed = False
        self._process: subprocess.Popen[bytes] | None = None
        settings = {
            "KVLINGUA_URL": url,
            "KVLINGUA_MAX_BYTES": str(max_bytes),
            "KVLINGUA_METRICS_DIR": str(self.metrics),
        }
        settings |= {"KVLINGUA_LOOKUP_TIMEOUT_S": "5"}  # a busy machine isn't a store in trouble
        # What torch's kernels keep of every shape that they met would hide a leak: with it vLLM alone rose by 18 MiB a
        # minute, without it one with kvlingua by less than 1.
        settings |= {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "16", "LRU_CACHE_CAPACITY": "16"}
        self._environment = environment(engine, settings)

    def start(self) -> None:
        """Start it; `wait` says when it is up. After `close` it does nothing."""
        with self._lock:
            if not self._closed:
                self._start()

    def _start(self) -> None:
        self.starts += 1
        values = {"model": MODEL, "port": self.port, "longest": LONGEST, "connector": json.dumps(CONNECTOR)}
        arguments = [each.format(**values) for each in ARGUMENTS[self.engine].split()]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [str(python_of(self.engine)), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environment,
                cwd=self._folder,
                start_new_session=True,
            )

    def wait(self) -> None:
        """Until it answers and kvlingua is on. Raises ServerError."""
        end = time.monotonic() + START_SECONDS
        while not (self._answers() and ON.search(self.log_text())):
            if not self.running:
                raise ServerError(f"{self.name} ended while it started\n{self.tail()}")
            if time.monotonic() > end:
                raise ServerError(
                    f"{self.name} wasn't up, with kvlingua on, within {START_SECONDS:.0f} s\n{self.tail()}"
                )
            time.sleep(0.5)
        self.healthy_since = time.monotonic()

    def kill(self) -> None:
        """SIGKILL for all of its processes, and wait until they are gone."""
        self.healthy_since = 0.0
        if self._process is None:
            return
        end = time.monotonic() + 30
        while (left := session_of(self._process.pid)) and time.monotonic() < end:
            for process in left:
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(0.2)

    def close(self) -> None:
        """`kill`, for good: another thread may be about to start it again."""
        with self._lock:
            self._closed = True
        self.kill()

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def log(self) -> Path:
        return self._folder / f"{self.name}-{self.starts}.log"

    def log_text(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def tail(self, lines: int = 30) -> str:
        return "\n".join([f"--- end of {self.log} ---", *self.log_text().splitlines()[-lines:]])

    def processes(self) -> Sequence[int]:
        return session_of(self._process.pid) if self._process is not None else []

    def metric(self, name: str, **labels: str) -> float:
        """Over all processes that there were, killed ones included."""
        return total(self.metrics, name, labels)

    def warnings(self) -> Iterator[str]:
        """What kvlingua warned of, in all logs."""
        for log in sorted(self._folder.glob(f"{self.name}-*.log")):
            for line in log.read_text(errors="replace").splitlines():
                if "kvlingua: WARNING" in line or "kvlingua: ERROR" in line:
                    yield line[line.index("kvlingua: ") :]

    def _answers(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port
