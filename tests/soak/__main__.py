"""`make soak`: two vLLM servers and one of SGLang share a store under load; servers are killed, objects damaged.

    python -m tests.soak --minutes 15 --seed 0

Every answer is compared with transformers', computed in fp32 without cache before the servers start. Ends with status 1
if one was wrong, a request failed though its server lived, memory or descriptors of a server rose, the store passed its
cap, or something that should have happened did not. Everything listens on 127.0.0.1 only and is killed at the end.
"""

import argparse
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from engines.launch import available
from engines.progress import say
from engines.recipe import Recipe
from tests.soak.clients import Clients
from tests.soak.conversations import make_conversations
from tests.soak.report import DEFECT, Report
from tests.soak.server import Server
from tests.soak.trouble import Corrupter, Killer
from tests.soak.watch import Watch

RESULTS = Path(__file__).resolve().parents[2] / "matrix" / "results" / "soak.json"
SERVERS = {"vllm-1": "vllm", "vllm-2": "vllm", "sglang": "sglang"}
CONVERSATIONS = 40
CLIENTS = 3
MAX_BYTES = 40 << 20  # less than half of what the conversations' chunks take
KILL_SECONDS = 180.0


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=15.0, help="of load, after all servers are up (15)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--control", action="store_true", help="damage that checksums can't show: the soak must find wrong answers"
    )
    parser.add_argument("--keep", type=Path, help="an empty folder for logs and the store; a temporary one otherwise")
    parser.add_argument("--result", type=Path, default=RESULTS)
    given = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is ended
    missing = [engine for engine in set(SERVERS.values()) if not available(engine)]
    if missing:
        parser.error(f"the environments of {', '.join(missing)} aren't built: run `make engines`")
    try:
        if given.keep is not None:
            given.keep.mkdir(parents=True, exist_ok=True)
            report = soak(given.keep, given.minutes, given.seed, given.control)
        else:
            with tempfile.TemporaryDirectory(prefix="kvlingua-soak-") as folder:
                report = soak(Path(folder), given.minutes, given.seed, given.control)
    except KeyboardInterrupt:
        print("soak: interrupted; all servers are killed", file=sys.stderr)
        return 130
    print(report.text(), flush=True)
    if given.control:
        return 0 if report.counts["wrong"] else 1
    report.write(given.result)
    return 1 if report.violations() else 0


def soak(folder: Path, minutes: float, seed: int, control: bool = False) -> Report:
    store = folder / "store"
    kill_seconds = min(KILL_SECONDS, 60 * minutes / 3)
    say(f"soak: answering {CONVERSATIONS} conversations without cache")
    talks = make_conversations(seed, CONVERSATIONS)
    servers = [Server(name, engine, folder, store.as_uri(), MAX_BYTES) for name, engine in SERVERS.items()]
    clients, corrupter = Clients(servers, talks, seed, CLIENTS), Corrupter(store, seed, control)
    killer, watch = Killer(servers, kill_seconds), Watch(servers, store)
    errors: list[str] = []
    try:
        say(f"soak: starting {', '.join(SERVERS)}")
        start_all(servers)
        say(f"soak: {minutes:g} minutes of load; a kill every {kill_seconds:.0f} s")
        parts = (watch, clients, corrupter, killer)
        for part in parts:
            part.start()
        end = time.monotonic() + 60 * minutes
        while (left := end - time.monotonic()) > 0 and not killer.failed:
            time.sleep(min(left, 15))
            check_alive(servers, errors)
            say(f"soak: {max(left, 0):4.0f} s left, {dict(clients.counts)}, {killer.kills} kills")
            if errors:
                break
        for part in reversed(parts):
            part.stop()
        time.sleep(3)  # metrics are written about once a second
        return Report(
            seed,
            minutes,
            list(SERVERS),
            {engine: Recipe.named(engine).version for engine in sorted(set(SERVERS.values()))},
            counts(servers, clients, corrupter, killer, watch),
            MAX_BYTES,
            watch.trends(),
            watch.samples(),
            [*errors, *killer.failed, *clients.wrong, *namespaces(store)],
            warnings(servers),
        )
    finally:
        for server in servers:
            server.close()


def start_all(servers: Sequence[Server]) -> None:
    for server in servers:
        server.start()
    with ThreadPoolExecutor(len(servers)) as pool:
        try:
            list(pool.map(Server.wait, servers))
        except BaseException:
            for server in servers:  # or the others would be waited for
                server.close()
            raise


def check_alive(servers: Sequence[Server], errors: list[str]) -> None:
    """A server that ended although nobody killed it."""
    for server in servers:
        if server.healthy_since and not server.running:
            errors.append(f"{server.name} ended by itself\n{server.tail()}")


def namespaces(store: Path) -> list[str]:
    """What is wrong unless all servers share one."""
    folders = sorted({path.parent.name for path in store.glob("*/*.safetensors")})
    return [] if len(folders) == 1 else [f"the servers used {len(folders)} namespaces: {', '.join(folders)}"]


def warnings(servers: Sequence[Server]) -> list[str]:
    """The first of each server, defects before all others."""
    found = []
    for server in servers:
        lines = sorted(server.warnings(), key=lambda line: DEFECT not in line)
        found += [f"{server.name}: {line}" for line in lines[:70]]
    return found


def counts(
    servers: Sequence[Server], clients: Clients, corrupter: Corrupter, killer: Killer, watch: Watch
) -> dict[str, float]:
    def metric(name: str) -> float:
        return sum(server.metric(name) for server in servers)

    refused = metric("kvlingua_corrupt_objects_total")
    return {
        **{
            name: clients.counts[name]
            for name in ("requests", "answers", "wrong", "failed", "failed_by_kill", "aborts")
        },
        "stuck": clients.stuck,
        "kills": killer.kills,
        "hits": metric("kvlingua_hits_total"),
        **{f"hits_{server.name}": server.metric("kvlingua_hits_total") for server in servers},
        "reused_tokens": metric("kvlingua_tokens_reused_total"),
        "stored_tokens": metric("kvlingua_tokens_stored_total"),
        "corruptions": sum(corrupter.counts.values()),
        "corrupt_refused": refused,
        "evictions": max(0.0, watch.vanished - refused),
        "refusals": metric("kvlingua_refusals_total"),
        "drops": metric("kvlingua_drops_total"),
        "max_disk": watch.disk,
    }


if __name__ == "__main__":
    sys.exit(main())
