"""LMCache in multiprocess mode, as a peer: its environment, its server, and what vLLM needs to use it.

The environment is a virtual environment in the user's cache folder that sees all packages of vLLM's own, with LMCache
0.5.6 on top of them: what else LMCache names as its dependencies serves GPUs, clouds and servers that aren't used here.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from engines.environment import default_root
from engines.launch import environment, python_of
from engines.lock import locked

VERSION = "0.5.6"
PACKAGES = (f"lmcache=={VERSION}", "sortedcontainers==2.4.0")
SERVER = "lmcache.v1.multiprocess.server"
START_SECONDS = 120.0
SETTINGS = {"LMCACHE_TRACK_USAGE": "false"}  # it would send what it does to its makers
BY_SHARED_MEMORY = "Creating EngineDrivenContextShm"  # in vLLM's log, where it doesn't fall back to pickle


def lmcache_python() -> Path:
    """The Python that has vLLM and LMCache; installed if need be."""
    own = python_of("vllm").parent.parent
    folder = default_root() / f"lmcache-{VERSION}-{own.name}"
    python = folder / "bin" / "python"
    with locked(folder.with_suffix(".lock"), waiting=lambda: print("waiting for another process to install LMCache")):
        done = folder / "complete"
        if not done.exists():
            print(f"installing LMCache {VERSION}", flush=True)
            subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
            packages = next((folder / "lib").glob("python3*")) / "site-packages"
            theirs = next((own / "lib").glob("python3*")) / "site-packages"
            (packages / "vllm.pth").write_text(f"{theirs}\n")
            subprocess.run([str(python), "-m", "pip", "install", "-q", "--no-deps", *PACKAGES], check=True)
            done.touch()
    return python


@contextmanager
def server(python: Path, log: Path, gigabytes: float) -> Iterator[Mapping[str, Any]]:
    """A running server with that much shared memory; gives vLLM's `kv_transfer_config` for it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    name = f"kvlingua-peer-{os.getpid()}"
    options = {
        "host": "127.0.0.1",
        "port": port,
        "l1-size-gb": gigabytes,
        "eviction-policy": "LRU",
        "supported-transfer-mode": "engine_driven",
        "shm-name": name,
    }
    words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    words.append("--disable-observability")  # needs packages that nothing else does, and costs time
    with log.open("ab") as output:
        process = subprocess.Popen(
            [str(python), "-m", SERVER, *words],
            env=environment("vllm", SETTINGS),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        _wait(process, port, log)
        yield {
            "kv_connector": "LMCacheMPConnector",
            "kv_connector_module_path": "lmcache.integration.vllm.lmcache_mp_connector",
            "kv_role": "kv_both",
            "kv_connector_extra_config": {"lmcache.mp.host": "tcp://127.0.0.1", "lmcache.mp.port": port},
        }
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):
            if process.poll() is None:
                os.killpg(process.pid, number)
                try:
                    process.wait(10)
                except subprocess.TimeoutExpired:
                    continue
        Path("/dev/shm", name).unlink(missing_ok=True)


def _wait(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    tail = "\n".join(log.read_text(errors="replace").splitlines()[-20:])
    raise RuntimeError(f"LMCache's server isn't there after {START_SECONDS:g} s or has ended; its log ends:\n{tail}")
