"""kvlingua as a storage backend of SGLang's HiCache, in fp32, on what transformers has stored. HiCache itself runs on a
CPU by a plug-in for tests only (`hicache_on_cpu`)."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from demo.job import MODEL
from engines.drivers.driver import Driver
from engines.launch import environment
from kvlingua.common.identity.chain import chain_digests, request_seed
from tests.engines.releases import ASKS, FLIPPED, NEGATED, PLAIN, PRODUCED, spoiled_copy, store_all
from tests.engines.sglang.conftest import Launcher
from tests.engines.sglang.hicache_on_cpu import install
from tests.engines.texts import CHUNK, chunks, length, taken

pytestmark = pytest.mark.thorough

BACKEND = {
    "backend_name": "kvlingua",
    "module_path": "kvlingua.adapters.sglang.hicache",
    "class_name": "KVLinguaHiCache",
    "interface_v1": 1,
}
HICACHE: dict[str, Any] = {
    "radix_cache_backend": None,
    "enable_hierarchical_cache": True,
    "hicache_io_backend": "direct",
    "hicache_mem_layout": "layer_first",
    "hicache_storage_prefetch_policy": "wait_complete",
    "hicache_storage_backend": "dynamic",
    "hicache_storage_backend_extra_config": json.dumps(BACKEND),
}
SALTED = replace(PRODUCED, cache_salt="red", extra_key="blue")


def settings(folder: Path) -> dict[str, str]:
    install(folder)
    return {"PYTHONPATH": os.pathsep.join([environment("sglang")["PYTHONPATH"], str(folder)])}


def test_pages_as_long_as_chunks(launch: Launcher, tmp_path: Path) -> None:
    stored = store_all(tmp_path / "hf")
    store = spoiled_copy(stored, tmp_path / "store")
    with launch(store, page=CHUNK, engine=HICACHE, settings=settings(tmp_path / "plugin")) as driver:
        assert driver.switched_on
        reply = driver.generate(PLAIN)
        assert reply.answers[0].tokens == stored.plain
        assert (reply.reused, reply.local) == (taken(CHUNK, PLAIN), 0)
        assert reply.computed == length(PLAIN) - taken(CHUNK, PLAIN)
        reply = driver.generate(NEGATED)
        assert reply.reused + reply.local == taken(CHUNK, NEGATED)
        assert reply.answers[0].tokens != stored.negated, "the stored values are what is used"
        reply = driver.generate(FLIPPED)
        assert (reply.answers[0].tokens, reply.reused) == (stored.flipped, 0), "computed"
        for ask in (PRODUCED, SALTED):
            reply = driver.generate(ask)
            assert (reply.answers[0].tokens, reply.reused, reply.local) == (stored.produced, 0, 0)
        driver.wait_objects(chunks(*ASKS, SALTED))
        names = {path.name.partition("-")[0] for path in store.rglob("*.safetensors")}
        seed = request_seed(SALTED.extra_key, SALTED.cache_salt)
        assert names.issuperset(digest.hex() for digest in chain_digests(SALTED.prompt, CHUNK, seed))
        assert driver.call("flush_cache"), "nothing is held any more, in the host pool neither"
        asks = [PLAIN, FLIPPED, PLAIN, PRODUCED, SALTED]
        reply = driver.generate(*asks)
        expected = [stored.plain, stored.flipped, stored.plain, stored.produced, stored.produced]
        assert [answer.tokens for answer in reply.answers] == expected
        assert reply.computed == length(*asks) - taken(CHUNK, *asks), "nothing that is stored is computed"
        assert driver.call("flush_cache")
        assert driver.call("update_weights_from_disk", model_path=str(MODEL))
        reply = driver.generate(PLAIN)
        assert (reply.answers[0].tokens, reply.reused) == (stored.plain, 0)
        assert "off: SGLang's weights were changed while it ran" in driver.log_text()
    with Driver("hf", MODEL, log=tmp_path / "hf.log", url=store.as_uri(), page=1) as driver:
        reply = driver.generate(PRODUCED)
        assert (reply.answers[0].tokens, reply.reused) == (stored.produced, taken(1, PRODUCED))


def test_other_pages_are_refused(launch: Launcher, tmp_path: Path) -> None:
    """One line says so, and HiCache runs as if it had no storage."""
    options = {"engine": HICACHE, "settings": settings(tmp_path / "plugin")}
    with launch(tmp_path / "store", page=16, **options) as driver:
        assert not driver.switched_on
        first, second = driver.generate(PLAIN), driver.generate(PLAIN)
        assert first.answers[0].tokens == second.answers[0].tokens
        assert (first.reused, first.local, first.computed) == (0, 0, length(PLAIN))
        assert (second.reused, second.local) == (0, length(PLAIN) // 16 * 16), "SGLang's own prefix cache works"
        said = [each for each in driver.log_text().splitlines() if "off: " in each]
        assert len(said) == 1, said
        assert "--page-size is 16, chunk_tokens is 64" in said[0]
        assert driver.metric_reaches("kvlingua_refusals_total", 1, adapter="sglang", reason="page_size")
    assert not (tmp_path / "store").exists()
