"""Time to first token on a prefix that another process has stored, against computing it, per engine.

    python benchmarks/ttft.py [--engines hf,vllm,sglang] [--tokens 4096] [--dtype bfloat16] [--rounds 5] [--check]

A Llama with random weights, 8 layers of 1,024, 8 kv heads of 128, MLP 8 times as wide (--mlp): 4,096 tokens are 128 MiB
of KV in bfloat16. One compute thread. A prompt is a prefix of --tokens tokens and a question of 16. A producer process
reads one prefix a round. A second process of the same engine then measures, round by round: a prompt with an unseen
prefix (cold), one with the stored prefix and another question (warm), and one with the same prefix and a third
question, out of the engine's own prefix cache (the floor of any reuse; transformers: a cache object kept by the
caller). All in one process that has answered such prompts before, so that drifts of the machine meet all three alike.
The store is a folder, its files in the page cache.

In each round the engine's counters must say that just the prefix was reused, and in float32 the first token must be the
one computed without a store. In bfloat16 tokens aren't compared: in a model of random weights the best two are often so
near that computing a prompt in other pieces swaps them, with any cache or none.

SGLang's attention for CPUs computes the whole prefix's attention anew for every suffix, which is its floor: with a
narrower MLP even its own prefix cache is less than 8 times faster than computing.
"""

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# Run as a script from the clone: `engines` is no installed package.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engines.drivers.driver import Driver
from engines.drivers.protocol import Ask
from engines.launch import engines as known_engines
from kvlingua.common.prefix import reusable_tokens

FASTER = 8.0  # cold / warm, at least
NEAR_OWN = {"vllm": 1.6}  # warm / own prefix cache, at most
PAGES = {"hf": 1, "vllm": 128, "sglang": 16}
CHUNK_TOKENS = 64
VOCABULARY = 1024
QUESTION = 16  # tokens
SETTINGS = {"KVLINGUA_CHUNK_TOKENS": str(CHUNK_TOKENS)}


@dataclass(frozen=True)
class Round:
    """Seconds to the first token."""

    cold: float
    warm: float
    floor: float


def make_model(folder: Path, mlp: int) -> None:
    """8 layers x 1,024, 8 kv heads x 128: 32 KiB of KV a token in bfloat16."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=1024,
        intermediate_size=mlp,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder)


def texts(count: int, tokens: int, seed: int) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(3, VOCABULARY) for _ in range(tokens)] for _ in range(count)]


def measure(engine: str, model: Path, tokens: int, dtype: str, rounds: int, work: Path) -> Iterator[Round]:
    """The rounds of one engine. Raises RuntimeError if what is called warm wasn't, or in float32 has another token."""
    store = work / f"store-{engine}"
    stored, unseen, warm_ups = texts(rounds, tokens, seed=1), texts(rounds, tokens, seed=2), texts(2, tokens, seed=3)
    first, second, third = texts(3, QUESTION, seed=4)
    whole = tokens + QUESTION
    wanted = reusable_tokens(tokens // CHUNK_TOKENS * CHUNK_TOKENS, whole, PAGES[engine])
    room = {"sglang": {"max_total_tokens": (2 * rounds + 3) * whole}}.get(engine, {})

    def launch(name: str, role: str) -> Driver:
        return Driver(
            engine,
            model,
            log=work / f"{engine}-{name}.log",
            url=store.as_uri(),
            settings=SETTINGS,
            page=PAGES[engine],
            max_model_len=whole + CHUNK_TOKENS,
            role=role,
            dtype=dtype,
            engine=room,
        )

    def first_token(driver: Driver, prompt: list[int], reused: int = 0, own: int = 0) -> tuple[float, int]:
        reply = driver.generate(Ask(prompt, max_tokens=1))
        if reply.reused != reused or reply.local < own:
            found = f"{reply.reused} tokens reused, {reply.local} from its own cache"
            raise RuntimeError(f"{engine}: {found}, expected {reused} and {own}; log: {driver.log}")
        answer = reply.answers[0]
        assert answer.ttft_s is not None
        return answer.ttft_s, answer.tokens[0]

    with launch("producer", "producer") as driver:
        first_token(driver, warm_ups[0][:CHUNK_TOKENS])
        for prefix in stored:
            first_token(driver, prefix + first)
        expected = [first_token(driver, prefix + second)[1] for prefix in stored]
        driver.wait_objects(rounds * (tokens // CHUNK_TOKENS))
    os.sync()
    with launch("consumer", "consumer") as driver:
        first_token(driver, warm_ups[1])
        for prefix, other, token in zip(stored, unseen, expected, strict=True):
            cold, _ = first_token(driver, other + second)
            into_page_cache(store)
            warm, found = first_token(driver, prefix + second, reused=wanted)
            if found != token and dtype == "float32":
                raise RuntimeError(f"{engine}: token {found} from the store, {token} computed")
            if engine == "hf":
                floor = driver.call("own_cache", prefix=prefix, question=third)
            else:
                floor, _ = first_token(driver, prefix + third, own=wanted)
            yield Round(cold, warm, floor)


def into_page_cache(store: Path) -> None:
    """Not all machines keep there for long what nobody reads, however much memory is free."""
    for path in store.rglob("*.safetensors"):
        path.read_bytes()


def row(name: str, ratios: list[float]) -> dict[str, object]:
    ordered = sorted(ratios)
    return {
        "name": name,
        "ratio": statistics.median(ordered),
        "median": statistics.median(ordered),
        "min": ordered[0],
        "max": ordered[-1],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", default=",".join(known_engines()))
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16", help="of weights and KV")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--mlp", type=int, default=8192, help="width of the MLP (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="one object a row instead of a table")
    limits = ", ".join(f"{engine}: warm / own prefix cache at most {limit:g}" for engine, limit in NEAR_OWN.items())
    check = f"exit 1 unless cold / warm is at least {FASTER:g} ({limits})"
    parser.add_argument("--check", action="store_true", help=check)
    options = parser.parse_args()
    met = True
    with tempfile.TemporaryDirectory(prefix="kvlingua-ttft-") as name:
        work = Path(name)
        make_model(work / "model", options.mlp)
        if not options.json:
            print(f"{options.tokens} tokens, {options.dtype}, {options.rounds} rounds, ratios as median (min - max)")
        for engine in options.engines.split(","):
            rounds = list(measure(engine, work / "model", options.tokens, options.dtype, options.rounds, work))
            faster, near = [one.cold / one.warm for one in rounds], [one.warm / one.floor for one in rounds]
            rows = [row(f"{engine}: cold / warm", faster), row(f"{engine}: warm / own prefix cache", near)]
            met = met and statistics.median(faster) >= FASTER
            met = met and statistics.median(near) <= NEAR_OWN.get(engine, float("inf"))
            for each in rows:
                print(
                    json.dumps(each)
                    if options.json
                    else f"{each['name']:32} {each['ratio']:6.2f}  ({each['min']:.2f} - {each['max']:.2f})",
                    flush=True,
                )
    return 0 if met or not options.check else 1


if __name__ == "__main__":
    sys.exit(main())
