"""kvlingua as SGLang's external linker, in fp32 and on two ranks, on what transformers has stored: it is reused with
its tokens, and the other way round, salts included; spoiled, it changes them, or is computed anew."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from demo.job import MODEL
from engines.drivers.driver import Driver
from kvlingua.common.identity.chain import chain_digests, request_seed
from tests.engines.releases import FLIPPED, NEGATED, PLAIN, PRODUCED, spoiled_copy, store_all
from tests.engines.sglang.conftest import Launcher
from tests.engines.texts import CHUNK, chunks, length, taken

pytestmark = pytest.mark.thorough

LINKER: dict[str, Any] = {
    "radix_cache_backend": None,
    "enable_unified_cache_external_linker": True,
    "unified_cache_external_linker_backend": "dynamic",
    "unified_cache_external_linker_config": {
        "linker": "KVLinguaLinker",
        "linker_module_path": "kvlingua.adapters.sglang.linker",
    },
}
RANKS = 2
SETTINGS = {"SGLANG_CPU_OMP_THREADS_BIND": "0|1", "SGLANG_ENABLE_RANK_CONSENSUS_CHECKER": "1"}
SALTED = replace(PRODUCED, cache_salt="red", extra_key="blue")


def test_pages_as_long_as_chunks(launch: Launcher, tmp_path: Path) -> None:
    stored = store_all(tmp_path / "hf")
    store = spoiled_copy(stored, tmp_path / "store")
    with launch(store, page=CHUNK, engine=LINKER | {"tp_size": RANKS}, settings=SETTINGS) as driver:
        assert driver.switched_on
        reply = driver.generate(PLAIN)
        assert reply.answers[0].tokens == stored.plain
        assert (reply.reused, reply.local) == (taken(CHUNK, PLAIN), 0)
        assert reply.computed == length(PLAIN) - taken(CHUNK, PLAIN)
        reply = driver.generate(NEGATED)
        assert reply.reused + reply.local == taken(CHUNK, NEGATED)
        assert reply.answers[0].tokens != stored.negated, "the stored values are what is used"
        reply = driver.generate(FLIPPED)
        assert (reply.answers[0].tokens, reply.reused) == (stored.flipped, 0), "recomputed, not given up"
        for ask in (PRODUCED, SALTED):
            reply = driver.generate(ask)
            assert (reply.answers[0].tokens, reply.reused, reply.local) == (stored.produced, 0, 0)
        by_transformers = chunks(PLAIN, NEGATED, FLIPPED) - 1  # and a damaged one, which was removed
        driver.wait_objects(by_transformers + RANKS * (1 + chunks(PRODUCED, SALTED)))
        names = {path.name.partition("-")[0] for path in store.rglob("*.safetensors")}
        seed = request_seed(SALTED.extra_key, SALTED.cache_salt)
        assert names.issuperset(digest.hex() for digest in chain_digests(SALTED.prompt, CHUNK, seed))
        assert driver.call("flush_cache"), "nothing is held any more"
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
    """One line says so, and SGLang runs as if there were no linker. What is set with the linker counts."""
    config = LINKER["unified_cache_external_linker_config"] | {"linker_extra_config": {"chunk_tokens": 32}}
    options = LINKER | {"unified_cache_external_linker_config": config}
    with launch(tmp_path / "store", page=16, engine=options) as driver:
        assert not driver.switched_on
        first, second = driver.generate(PLAIN), driver.generate(PLAIN)
        assert first.answers[0].tokens == second.answers[0].tokens
        assert (first.reused, first.local, first.computed) == (0, 0, length(PLAIN))
        assert (second.reused, second.local) == (0, length(PLAIN) // 16 * 16), "SGLang's own prefix cache works"
        said = [each for each in driver.log_text().splitlines() if "off: " in each]
        assert len(said) == 1, said
        assert "--page-size is 16, chunk_tokens is 32" in said[0]
        assert driver.metric_reaches("kvlingua_refusals_total", 1, adapter="sglang", reason="page_size")
    assert not (tmp_path / "store").exists()
