"""kvlingua as a storage backend of SGLang's HiCache, in fp32. HiCache itself runs on a CPU by a plug-in for tests only
(`hicache_on_cpu`)."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from engines.launch import environment
from tests.engines.releases import ASKS, spoiled_copy, store_all
from tests.engines.sglang.by_pages import SALTED, check_refusal, check_reuse, check_transformers_reuses
from tests.engines.sglang.conftest import Launcher
from tests.engines.sglang.hicache_on_cpu import install
from tests.engines.texts import CHUNK, chunks

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


def settings(folder: Path) -> dict[str, str]:
    install(folder)
    return {"PYTHONPATH": os.pathsep.join([environment("sglang")["PYTHONPATH"], str(folder)])}


def test_pages_as_long_as_chunks(launch: Launcher, tmp_path: Path) -> None:
    stored = store_all(tmp_path / "hf")
    store = spoiled_copy(stored, tmp_path / "store")
    with launch(store, page=CHUNK, engine=HICACHE, settings=settings(tmp_path / "plugin")) as driver:
        check_reuse(driver, stored, store, chunks(*ASKS, SALTED))
    check_transformers_reuses(stored, store, tmp_path / "hf.log")


def test_attached_to_a_running_engine(launch: Launcher, tmp_path: Path) -> None:
    """Whose weights may have been changed since its start: it stays off, also where it was on before."""
    stored = store_all(tmp_path / "hf")
    with launch(stored.folder, page=CHUNK, engine=HICACHE, settings=settings(tmp_path / "plugin")) as driver:
        assert driver.switched_on
        reply = driver.generate(ASKS[0])
        assert (reply.reused, reply.answers[0].tokens) == (chunks(ASKS[0]) * CHUNK, stored.plain)
        assert driver.call("flush_cache")
        assert driver.call("detach_hicache_storage")
        how = {"hicache_storage_backend": "dynamic", "hicache_storage_backend_extra_config_json": json.dumps(BACKEND)}
        assert driver.call("attach_hicache_storage", **how)
        again = driver.generate(ASKS[0])
        assert (again.reused, again.answers[0].tokens) == (0, stored.plain)
        assert "off: attached to an SGLang that runs" in driver.log_text()


def test_other_pages_are_refused(launch: Launcher, tmp_path: Path) -> None:
    options = {"engine": HICACHE, "settings": settings(tmp_path / "plugin")}
    with launch(tmp_path / "store", page=16, **options) as driver:
        check_refusal(driver, chunk=CHUNK)
    assert not (tmp_path / "store").exists()
