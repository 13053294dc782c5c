"""Time to first token on a stored prefix: kvlingua, LMCache and the engine's own prefix cache, interleaved in one run.

    python benchmarks/peers.py [--engines vllm,sglang] [--tokens 1024,4096] [--rounds 7] [--dtype bfloat16] [--check]

The model and the prompts are those of ttft.py, with one compute thread. --dtype float32 and a smaller --mlp are for
CPUs without AVX-512, which are slow in bfloat16. vLLM runs twice side by side, once with kvlingua and a folder (files
in the page cache), once with LMCache 0.5.6 in multiprocess mode with shared memory; while one is asked all of the
other engine's own processes are stopped (LMCache's server goes on). Producers, other processes, have stored one
prefix a round before. A round asks both engines, in an order that is drawn anew: a prompt with an unseen prefix
(cold), one with the stored prefix (warm), and one with that prefix out of the engine's own cache (own, the floor of
any reuse). In each the engine's counters must say that just the prefix was reused. SGLang, which LMCache doesn't
support on CPUs, is measured against its own radix cache alone.

LMCache is installed into an environment of its own, in the user's cache folder, at the first run.
"""

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Run as a script from the clone: `engines` and `benchmarks` are no installed packages.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import lmcache_server
from benchmarks.ttft import CHUNK_TOKENS, PAGES, QUESTION, SETTINGS, into_page_cache, make_model, row, texts
from engines.drivers.driver import Driver
from engines.drivers.protocol import Ask
from kvlingua.common.prefix import reusable_tokens

NEAR_OWN = 1.6  # kvlingua's warm / vLLM's own prefix cache at 4,096 tokens, at most
SETTLE_S = 1.0  # for what is still written after an answer
LMCACHE_CHUNK = 256
KV_BYTES = {"bfloat16": 32 << 10, "float32": 64 << 10}  # of a token


@dataclass
class Peer:
    """A way to reuse prefixes, and what it took: seconds per round, by kind of prompt."""

    name: str
    engine: str
    chunk: int
    model: Path
    launch: Mapping[str, Any]
    store: Path | None = None  # kvlingua's
    seconds: dict[str, list[float]] = field(default_factory=lambda: {"cold": [], "warm": [], "own": []})

    def start(self, log: Path) -> Driver:
        return Driver(self.engine, self.model, log=log, page=PAGES[self.engine], **self.launch)

    def reused(self, tokens: int) -> int:
        """How many tokens of a stored prefix of `tokens` a prompt with a question behind it can reuse."""
        return reusable_tokens(tokens // self.chunk * self.chunk, tokens + QUESTION, PAGES[self.engine])


def first_token(driver: Driver, prompt: list[int], reused: int = 0, own: int = 0) -> float:
    reply = driver.generate(Ask(prompt, max_tokens=1))
    if reply.reused != reused or reply.local < own:
        found = f"{reply.reused} tokens reused, {reply.local} from its own cache"
        raise RuntimeError(f"{driver.log.stem}: {found}, expected {reused} and {own}; log: {driver.log}")
    seconds = reply.answers[0].ttft_s
    assert seconds is not None
    time.sleep(SETTLE_S)
    return seconds


def measure(peers: list[Peer], tokens: int, rounds: int, work: Path) -> None:
    """Fill the peers' `seconds`."""
    stored, unseen, warm_ups = texts(rounds, tokens, seed=1), texts(rounds, tokens, seed=2), texts(2, tokens, seed=3)
    first, second, third = texts(3, QUESTION, seed=4)
    for peer in peers:
        with peer.start(work / f"{tokens}-{peer.name}-producer.log") as driver:
            for prefix in (warm_ups[0], *stored):
                first_token(driver, prefix + first)
            if peer.store is not None:
                driver.wait_objects((rounds + 1) * (tokens // CHUNK_TOKENS))
    with ExitStack() as running:
        drivers = []
        for peer in peers:
            driver = running.enter_context(peer.start(work / f"{tokens}-{peer.name}.log"))
            first_token(driver, warm_ups[0] + second, reused=peer.reused(tokens))
            first_token(driver, warm_ups[1] + second)
            driver.pause()
            drivers.append(driver)
        shuffled = random.Random(5)
        for prefix, other in zip(stored, unseen, strict=True):
            for index in shuffled.sample(range(len(peers)), len(peers)):
                peer, driver = peers[index], drivers[index]
                driver.resume()
                peer.seconds["cold"].append(first_token(driver, other + second))
                if peer.store is not None:
                    into_page_cache(peer.store)
                wanted = peer.reused(tokens)
                peer.seconds["warm"].append(first_token(driver, prefix + second, reused=wanted))
                peer.seconds["own"].append(first_token(driver, prefix + third, own=wanted))
                driver.pause()
        for driver in drivers:
            driver.resume()


@contextmanager
def peers_of(engine: str, model: Path, tokens: int, dtype: str, rounds: int, work: Path) -> Iterator[list[Peer]]:
    whole = tokens + QUESTION
    room = {"sglang": {"max_total_tokens": (3 * rounds + 4) * whole}}.get(engine, {})
    common = {"max_model_len": whole + CHUNK_TOKENS, "dtype": dtype}
    store = work / f"store-{engine}-{tokens}"
    ours = {"url": store.as_uri(), "settings": SETTINGS, "engine": room, **common}
    ours["settings"] = SETTINGS | {"KVLINGUA_MAX_BYTES": "64GiB"}
    kvlingua = Peer("kvlingua", engine, CHUNK_TOKENS, model, ours, store)
    if engine != "vllm":
        yield [kvlingua]
        return
    python = lmcache_server.lmcache_python()
    gigabytes = 1 + (2 * rounds + 2) * whole * KV_BYTES[dtype] / 1e9
    with lmcache_server.server(python, work / f"{tokens}-lmcache-server.log", gigabytes) as connector:
        launch = {
            "cache": False,
            "python": python,
            "settings": lmcache_server.SETTINGS,
            "engine": {"kv_transfer_config": connector},
            **common,
        }
        lmcache = Peer("lmcache", engine, LMCACHE_CHUNK, model, launch)
        yield [kvlingua, lmcache]
        log = (work / f"{tokens}-lmcache.log").read_text(errors="replace")
        if lmcache_server.BY_SHARED_MEMORY not in log:
            raise RuntimeError(
                f"LMCache didn't use shared memory, so that this is no fair comparison; log: {log[-2000:]}"
            )


def ratios(above: list[float], below: list[float]) -> list[float]:
    return [one / other for one, other in zip(above, below, strict=True)]


def rows(engine: str, tokens: int, peers: list[Peer]) -> Iterator[dict[str, object]]:
    for peer in peers:
        for kind, name in (("own", f"{engine}'s own prefix cache"), ("cold", "cold")):
            yield row(f"{engine} {tokens}: {peer.name} / {name}", ratios(peer.seconds["warm"], peer.seconds[kind]))
    for peer in peers[1:]:
        yield row(f"{engine} {tokens}: {peer.name} / kvlingua", ratios(peer.seconds["warm"], peers[0].seconds["warm"]))
        yield row(
            f"{engine} {tokens}: cold, {peer.name} / kvlingua", ratios(peer.seconds["cold"], peers[0].seconds["cold"])
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", default="vllm,sglang")
    parser.add_argument("--tokens", default="1024,4096")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16", help="of weights and KV")
    parser.add_argument("--mlp", type=int, default=8192, help="width of the MLP (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="one object a row instead of a table")
    check = (
        f"exit 1 unless at 4,096 tokens kvlingua / vLLM's own is at most {NEAR_OWN:g} and LMCache / kvlingua above 1"
    )
    parser.add_argument("--check", action="store_true", help=check)
    options = parser.parse_args()
    if options.check and not ("vllm" in options.engines.split(",") and "4096" in options.tokens.split(",")):
        parser.error("--check judges vLLM at 4,096 tokens: both must be among --engines and --tokens")
    met = True
    with tempfile.TemporaryDirectory(prefix="kvlingua-peers-") as name:
        work = Path(name)
        make_model(work / "model", options.mlp)
        for engine in options.engines.split(","):
            for tokens in map(int, options.tokens.split(",")):
                with peers_of(engine, work / "model", tokens, options.dtype, options.rounds, work) as peers:
                    measure(peers, tokens, options.rounds, work)
                for each in rows(engine, tokens, peers):
                    text = f"{each['name']:48} {each['ratio']:6.2f}  ({each['min']:.2f} - {each['max']:.2f})"
                    print(json.dumps(each) if options.json else text, flush=True)
                if engine == "vllm" and tokens == 4096:
                    ours, theirs = (peer.seconds for peer in peers)
                    met = met and statistics.median(ratios(ours["warm"], ours["own"])) <= NEAR_OWN
                    met = met and statistics.median(ratios(theirs["warm"], ours["warm"])) > 1
    return 0 if met or not options.check else 1


if __name__ == "__main__":
    sys.exit(main())
