"""kvlingua as SGLang's external linker, in fp32 and on two ranks."""

from pathlib import Path
from typing import Any

import pytest

from tests.engines.releases import FLIPPED, NEGATED, PLAIN, PRODUCED, spoiled_copy, store_all
from tests.engines.sglang.by_pages import SALTED, check_refusal, check_reuse, check_transformers_reuses
from tests.engines.sglang.conftest import Launcher
from tests.engines.texts import CHUNK, chunks

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


def test_pages_as_long_as_chunks(launch: Launcher, tmp_path: Path) -> None:
    stored = store_all(tmp_path / "hf")
    store = spoiled_copy(stored, tmp_path / "store")
    by_transformers = chunks(PLAIN, NEGATED, FLIPPED) - 1  # and a damaged one, which is removed
    objects = by_transformers + RANKS * (1 + chunks(PRODUCED, SALTED))
    with launch(store, page=CHUNK, engine=LINKER | {"tp_size": RANKS}, settings=SETTINGS) as driver:
        check_reuse(driver, stored, store, objects)
    check_transformers_reuses(stored, store, tmp_path / "hf.log")


def test_other_pages_are_refused(launch: Launcher, tmp_path: Path) -> None:
    """What is set with the linker counts."""
    config = LINKER["unified_cache_external_linker_config"] | {"linker_extra_config": {"chunk_tokens": 32}}
    options = LINKER | {"unified_cache_external_linker_config": config}
    with launch(tmp_path / "store", page=16, engine=options) as driver:
        check_refusal(driver, chunk=32)
    assert not (tmp_path / "store").exists()
