"""Time to first token on a prefix that another process has stored, against computing it, per engine.

    python benchmarks/ttft.py [--engines hf,vllm,sglang] [--tokens 2048] [--rounds 5] [--json] [--check]

A Llama with random weights, 8 layers of 1,024, fp32. A producer process stores one prompt a round. A second process of
the same engine then measures, round by round: an unseen prompt of that length (cold), the stored one (warm), and the
stored one again out of the engine's own prefix cache (the floor of any reuse; transformers: a cache object kept by the
caller). All in one warmed process, so that drifts of the machine meet all three alike. The store is a folder, its files
in the page cache.
"""

import argparse
import json
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

TARGET = 8.0  # cold / warm, at 2,048 tokens
PAGES = {"hf": 1, "vllm": 128, "sglang": 16}
CHUNK_TOKENS = 64
VOCABULARY = 1024
SETTINGS = {"KVLINGUA_CHUNK_TOKENS": str(CHUNK_TOKENS)}


@dataclass(frozen=True)
class Round:
    """Seconds to the first token."""

    cold: float
    warm: float
    floor: float


def make_model(folder: Path) -> None:
    """8 layers x 1,024, 8 kv heads x 128: 128 KiB of KV a token in fp32."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=1024,
        intermediate_size=2816,
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


def prompts(count: int, tokens: int, seed: int) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(3, VOCABULARY) for _ in range(tokens)] for _ in range(count)]


def measure(engine: str, model: Path, tokens: int, rounds: int, work: Path) -> Iterator[Round]:
    """The rounds of one engine. Raises RuntimeError if what is called warm wasn't, or gives another token."""
    store = work / f"store-{engine}"
    stored, unseen = prompts(rounds, tokens, seed=1), prompts(rounds, tokens, seed=2)
    warm_ups = prompts(2, tokens, seed=3)
    wanted = reusable_tokens(tokens // CHUNK_TOKENS * CHUNK_TOKENS, tokens, PAGES[engine])
    room = {"sglang": {"max_total_tokens": (2 * rounds + 3) * tokens}}.get(engine, {})

    def launch(name: str, role: str) -> Driver:
        return Driver(
            engine,
            model,
            log=work / f"{engine}-{name}.log",
            url=store.as_uri(),
            settings=SETTINGS,
            page=PAGES[engine],
            max_model_len=tokens + 64,
            role=role,
            engine=room,
        )

    def first_token(driver: Driver, prompt: list[int], reused: int | None) -> tuple[float, int]:
        reply = driver.generate(Ask(prompt, max_tokens=1))
        if reused is not None and reply.reused != reused:
            raise RuntimeError(f"{engine}: {reply.reused} tokens reused, expected {reused}; log: {driver.log}")
        answer = reply.answers[0]
        assert answer.ttft_s is not None
        return answer.ttft_s, answer.tokens[0]

    with launch("producer", "producer") as driver:
        first_token(driver, warm_ups[0][:CHUNK_TOKENS], 0)
        expected = [first_token(driver, prompt, 0)[1] for prompt in stored]
        driver.wait_objects(rounds * (tokens // CHUNK_TOKENS))
    with launch("consumer", "consumer") as driver:
        first_token(driver, warm_ups[1], 0)
        for prompt, other, token in zip(stored, unseen, expected, strict=True):
            cold, _ = first_token(driver, other, 0)
            warm, found = first_token(driver, prompt, wanted)
            if found != token:
                raise RuntimeError(f"{engine}: token {found} from the store, {token} computed")
            floor = driver.call("own_cache", prompt=prompt) if engine == "hf" else first_token(driver, prompt, 0)[0]
            yield Round(cold, warm, floor)


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
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="one object a row instead of a table")
    parser.add_argument("--check", action="store_true", help=f"exit 1 unless cold / warm is at least {TARGET:g}")
    options = parser.parse_args()
    met = True
    with tempfile.TemporaryDirectory(prefix="kvlingua-ttft-") as name:
        work = Path(name)
        make_model(work / "model")
        if not options.json:
            print(f"{options.tokens} tokens, {options.rounds} rounds, ratios as median (min - max)")
        for engine in options.engines.split(","):
            rounds = list(measure(engine, work / "model", options.tokens, options.rounds, work))
            rows = [
                row(f"{engine}: cold / warm", [one.cold / one.warm for one in rounds]),
                row(f"{engine}: warm / own prefix cache", [one.warm / one.floor for one in rounds]),
            ]
            met = met and float(str(rows[0]["ratio"])) >= TARGET
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
