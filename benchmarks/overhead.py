"""What kvlingua costs an engine when there is nothing to reuse.

    python benchmarks/overhead.py [--engines vllm,sglang] [--pairs 7] [--prompts 4] [--tokens 1024] [--dtype bfloat16]
        [--check]

The model is that of ttft.py, with one compute thread. The engine runs twice side by side, with the flag and without;
while one works all processes of the other are stopped. A turn: --prompts new prompts of --tokens tokens, handed over
together, and 32 tokens generated for each. With the flag each is looked up, missed and stored.

    own clock   CPU seconds inside kvlingua's hooks and threads, by its own count (kvlingua_cpu_seconds_total), those
                of writing behind the last answer included, of the CPU seconds of all of the engine's processes until
                the last answer
    A/B         CPU seconds, and seconds by the wall clock, until the last answer, with the flag / without, in pairs of
                turns whose order changes; the median, and the interval that holds the true median with 95 % or more
                (the order statistics of a binomial: with seven pairs the least and the greatest, 98 %)
"""

import argparse
import json
import math
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# Run as a script from the clone: `engines` and `benchmarks` are no installed packages.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.ttft import PAGES, SETTINGS, make_model, texts
from engines.drivers.driver import Driver
from engines.drivers.protocol import Ask

AT_MOST = 0.03  # of the engine's CPU seconds
ANSWER = 32  # tokens
CONFIDENCE = 0.95
METRIC = "kvlingua_cpu_seconds_total"
METRICS_S = 2.5  # after the last thing that was counted, the files of metrics hold it


@dataclass(frozen=True)
class Turn:
    """Seconds. ours: CPU, by kvlingua's own clock."""

    cpu: float
    wall: float
    ours: float


def turn(driver: Driver, prompts: list[list[int]]) -> Turn:
    """One turn of an engine that is stopped before and after."""
    driver.resume()
    cpu, ours = driver.cpu_seconds(), driver.metric(METRIC)
    began = time.monotonic()
    reply = driver.generate(*(Ask(prompt, max_tokens=ANSWER) for prompt in prompts))
    wall, cpu = time.monotonic() - began, driver.cpu_seconds() - cpu
    if reply.reused or reply.local:
        raise RuntimeError(f"{reply.reused + reply.local} tokens were reused, and there should be nothing to reuse")
    if driver.launch.cache:
        time.sleep(METRICS_S)
    driver.pause()
    return Turn(cpu, wall, driver.metric(METRIC) - ours)


def measure(
    engine: str, model: Path, pairs: int, prompts: int, tokens: int, dtype: str, work: Path
) -> Iterator[tuple[Turn, Turn]]:
    """Pairs of turns: with the flag, and without."""
    store = work / f"store-{engine}"
    length = tokens + ANSWER
    room = {"sglang": {"max_total_tokens": 2 * prompts * length}, "vllm": {"enable_prefix_caching": True}}[engine]

    def launch(cache: bool) -> Driver:
        return Driver(
            engine,
            model,
            log=work / f"{engine}-{'with' if cache else 'without'}.log",
            url=store.as_uri() if cache else None,
            settings=SETTINGS | {"KVLINGUA_MAX_BYTES": "64GiB"},
            page=PAGES[engine],
            max_model_len=length,
            dtype=dtype,
            cache=cache,
            engine=room,
        )

    asked = iter(texts((2 * pairs + 2) * prompts, tokens, seed=6))

    def fresh() -> list[list[int]]:
        return [next(asked) for _ in range(prompts)]

    order = random.Random(7)
    with launch(True) as with_flag, launch(False) as without:
        for driver in (with_flag, without):
            turn(driver, fresh())
        for _ in range(pairs):
            turns = {driver: turn(driver, fresh()) for driver in order.sample((with_flag, without), 2)}
            yield turns[with_flag], turns[without]
        if with_flag.objects() < (pairs + 1) * prompts * (tokens // int(SETTINGS["KVLINGUA_CHUNK_TOKENS"])):
            raise RuntimeError(f"only {with_flag.objects()} objects were stored: the flag didn't do its work")
        for driver in (with_flag, without):
            driver.resume()


def interval(values: list[float]) -> tuple[float, float, float]:
    """The two values between which the true median lies, and with what confidence: from the order statistics.

    The k-th least and the k-th greatest of n miss it with probability 2 * P(at most k - 1 of n coins show heads).
    """
    ordered, n = sorted(values), len(values)
    found = ordered[0], ordered[-1], 1 - 2 * 0.5**n
    for k in range(2, n // 2 + 1):
        confidence = 1 - 2 * sum(math.comb(n, i) for i in range(k)) * 0.5**n
        if confidence < CONFIDENCE:
            break
        found = ordered[k - 1], ordered[n - k], confidence
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", default="vllm,sglang")
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16", help="of weights and KV")
    parser.add_argument("--mlp", type=int, default=8192, help="width of the MLP (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="one object a row instead of a table")
    parser.add_argument("--check", action="store_true", help=f"exit 1 if the own clock's share is above {AT_MOST:.0%}")
    options = parser.parse_args()
    met = True
    with tempfile.TemporaryDirectory(prefix="kvlingua-overhead-") as name:
        work = Path(name)
        make_model(work / "model", options.mlp)
        for engine in options.engines.split(","):
            found = list(
                measure(engine, work / "model", options.pairs, options.prompts, options.tokens, options.dtype, work)
            )
            kinds = {
                "own clock / engine's CPU": [ours.ours / ours.cpu for ours, _ in found],
                "A/B, CPU": [ours.cpu / other.cpu for ours, other in found],
                "A/B, wall clock": [ours.wall / other.wall for ours, other in found],
            }
            for kind, values in kinds.items():
                low, high, confidence = interval(values)
                median = statistics.median(values)
                row = {"name": f"{engine}: {kind}", "ratio": median, "median": median, "min": low, "max": high}
                text = f"{row['name']:34} {median:7.4f}  ({low:.4f} - {high:.4f}, {confidence:.0%} of {len(values)})"
                print(json.dumps(row | {"confidence": confidence}) if options.json else text, flush=True)
            met = met and statistics.median(kinds["own clock / engine's CPU"]) <= AT_MOST
    return 0 if met or not options.check else 1


if __name__ == "__main__":
    sys.exit(main())
