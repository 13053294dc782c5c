"""What isn't the same is a miss: after the unmutated model has hit, each mutation of it must not. Another model, dtype
and chunk size are the conformance suite's.

Every case is a real launch on the one store that the unmutated model has filled.
"""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from demo.documents import make_document
from demo.job import CHUNK_TOKENS, MODEL, PAGES
from engines.drivers.driver import Driver
from engines.drivers.protocol import Ask
from engines.launch import HF, engines
from kvlingua.common.prefix import reusable_tokens

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(900)]

DOCUMENT = make_document(seed=7, length=400, questions=2)
READ, REUSE = (DOCUMENT.prompt(question) for question in DOCUMENT.questions)
# vLLM in one process starts in a quarter of the time; that its parts work apart is shown elsewhere.
SETTINGS: Mapping[str, Mapping[str, str]] = {"vllm": {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}}


def flip_one_bit(model: Path) -> None:
    """One bit of one weight; size and modification time are as before."""
    path = model / "model.safetensors"
    before = path.stat()
    data = bytearray(path.read_bytes())
    data[-1000] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    assert (after.st_size, after.st_mtime_ns, after.st_ino) == (before.st_size, before.st_mtime_ns, before.st_ino)


def change_config(**changes: Any) -> Callable[[Path], None]:
    def change(model: Path) -> None:
        path = model / "config.json"
        config = json.loads(path.read_text())
        for key, value in changes.items():
            assert config[key] != value
            config[key] = value
        path.write_text(json.dumps(config))

    return change


def change_theta(model: Path) -> None:
    """In both spellings that config.json has for it."""
    path = model / "config.json"
    config = json.loads(path.read_text())
    config["rope_theta"] = config["rope_parameters"]["rope_theta"] = 10000.0
    path.write_text(json.dumps(config))


MUTATIONS: Mapping[str, Callable[[Path], None]] = {
    "one bit of one weight": flip_one_bit,
    "rope theta": change_theta,
    "rms_norm_eps": change_config(rms_norm_eps=2e-5),
}


CASES = [engine if engine == HF else pytest.param(engine, marks=pytest.mark.thorough) for engine in engines()]


@pytest.mark.parametrize("engine", CASES)
def test_a_mutation_is_a_miss(engine: str, tmp_path: Path) -> None:
    model, store = tmp_path / "model", tmp_path / "store"
    shutil.copytree(MODEL, model)

    def launch(name: str, **options: Any) -> Driver:
        settings = {"KVLINGUA_CHUNK_TOKENS": str(CHUNK_TOKENS), **SETTINGS.get(engine, {})}
        log = tmp_path / f"{name.replace(' ', '-')}.log"
        return Driver(engine, model, log=log, url=store.as_uri(), settings=settings, page=PAGES[engine], **options)

    def reuse(name: str) -> None:
        """Expects a miss, of an engine that is on, under another name than the unmutated one's."""
        with launch(name, role="consumer") as driver:
            reply = driver.generate(Ask(REUSE))
        assert driver.switched_on, f"{name}: it is off, so this shows nothing"
        assert driver.namespace not in (None, unmutated), f"{name} is no other namespace"
        assert (reply.reused, reply.computed) == (0, len(REUSE)), f"{name} hit"

    with launch("producer", role="producer") as driver:
        driver.generate(Ask(READ))
        driver.wait_objects(len(READ) // CHUNK_TOKENS)

    with launch("unmutated", role="consumer") as driver:
        expect_miss(driver, engine)
        hit = driver.generate(Ask(REUSE))
    unmutated = driver.namespace
    stored = len(DOCUMENT.ids) // CHUNK_TOKENS * CHUNK_TOKENS
    assert hit.reused == reusable_tokens(stored, len(REUSE), PAGES[engine]) > 0

    for name, mutate in MUTATIONS.items():
        mutate(model)
        reuse(name)
        shutil.rmtree(model)
        shutil.copytree(MODEL, model)


def expect_miss(driver: Driver, engine: str) -> None:
    """Salted requests, before the same process hits without a salt."""
    salts = {"hf": [], "vllm": [{"cache_salt": "a"}], "sglang": [{"cache_salt": "a"}, {"extra_key": "a"}]}[engine]
    for salt in salts:
        reply = driver.generate(Ask(REUSE, **salt))
        assert (reply.reused, reply.computed) == (0, len(REUSE)), f"{salt} hit"
