"""What was computed with a LoRA adapter is found by requests of that very adapter, known by its content: whatever name,
number and folder it has, in transformers and in SGLang, at the start and later. Not by the base model's, not by another
adapter's, not by one that took its name."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from safetensors.torch import save_file

from demo.job import MODEL
from engines.drivers.driver import Driver
from kvlingua.common.identity.lora_folder import CONFIG, adapter_digest
from tests.engines.adapters import ALL, ATTENTION, RANK, matrices, random_adapter
from tests.engines.sglang.conftest import Launcher
from tests.engines.sglang.lora import ENABLED, unpinned, wait_until_known, with_adapter
from tests.engines.texts import chunks, length, taken, text, whole
from tests.spoil import negate_v

pytestmark = pytest.mark.thorough

PAGE = 16
TEXT, OTHER = text(160), text(161)
# Fewer slots than adapters, so that SGLang takes slots away and gives them to others.
ENGINE = {**ENABLED, "max_loras_per_batch": 4}
AT_START = ("a", "copy of a", "b", "stronger", "patterned", "crowded")


@dataclass(frozen=True)
class Stored:
    """Adapters in folders; a store with what transformers has computed with the first and without any; its answers to
    TEXT with each and without, to OTHER with some."""

    root: Path
    folders: dict[str, Path]
    store: Path
    cold: dict[str | None, list[int]]
    cold_other: dict[str | None, list[int]]


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Stored:
    root = tmp_path_factory.mktemp("lora")
    folders = {
        "a": random_adapter(root / "a", 1),
        "b": random_adapter(root / "b", 2, ALL, scale=0.3),
        "stronger": random_adapter(root / "stronger", 1, lora_alpha=2 * RANK),
        "patterned": random_adapter(root / "patterned", 1, rank_pattern={"q_proj": RANK}),
        "crowded": random_adapter(root / "crowded", 1),
        "later": random_adapter(root / "later", 3, ATTENTION, scale=0.5),
        "changed": random_adapter(root / "changed", 4),
    }
    folders["copy of a"] = shutil.copytree(folders["a"], root / "copy of a")
    save_file(matrices(2, ["v_proj"]), folders["crowded"] / "more.safetensors")
    store = root / "store"
    cold: dict[str | None, list[int]] = {}
    cold_other: dict[str | None, list[int]] = {}
    with Driver("hf", MODEL, log=root / "cold.log", cache=False) as driver:
        for name in (None, *folders):
            driver.call("use_adapter", folder=None if name is None else str(folders[name]))
            cold[name] = driver.generate(TEXT).answers[0].tokens
            if name in (None, "a", "b"):
                cold_other[name] = driver.generate(OTHER).answers[0].tokens
    with Driver("hf", MODEL, log=root / "hf.log", url=store.as_uri()) as driver:
        driver.generate(TEXT)
        driver.call("use_adapter", folder=str(folders["a"]))
        assert driver.generate(TEXT).answers[0].tokens == cold["a"]
        driver.wait_objects(2 * whole(TEXT))
    different = (None, "a", "b", "stronger", "later", "changed")
    assert len({tuple(cold[name]) for name in different}) == len(different), "or the tests show nothing"
    return Stored(root, folders, store, cold, cold_other)


@pytest.fixture(scope="module")
def driver(launch: Launcher, stored: Stored) -> Iterator[Driver]:
    paths = {f"my {name}": str(stored.folders[name]) for name in AT_START}
    with launch(stored.store, settings=unpinned(), engine={**ENGINE, "lora_paths": paths}) as running:
        wait_until_known(running, *(stored.folders[name] for name in AT_START[:4]))
        yield running


def tokens(driver: Driver, name: str | None, reused: int) -> list[int]:
    """The answer, of whose prompt so many tokens are loaded and none come from SGLang's own prefix cache."""
    assert driver.call("flush_cache")
    reply = driver.generate(with_adapter(TEXT, name))
    assert (reply.reused, reply.local, reply.computed) == (reused, 0, length(TEXT) - reused), name
    return reply.answers[0].tokens


def namespaces(store: Path) -> dict[str | None, Path]:
    """The folders of the store by the digest of the adapter."""
    return {json.loads(path.read_text()).get("lora"): path.parent for path in store.glob("*/namespace.json")}


def test_an_adapter_finds_its_own(driver: Driver, stored: Stored) -> None:
    all_of_it = taken(PAGE, TEXT)
    for name in ("a", "copy of a"):
        assert tokens(driver, f"my {name}", all_of_it) == stored.cold[name], "transformers has stored it"
    assert tokens(driver, None, all_of_it) == stored.cold[None]
    counted = driver.metric("kvlingua_refusals_total", reason="lora")
    for name in ("b", "stronger", "patterned"):
        assert tokens(driver, f"my {name}", 0) == stored.cold[name]
    assert tokens(driver, "my crowded", 0) != stored.cold["crowded"], "SGLang reads both files"
    driver.wait_objects(4 * whole(TEXT))
    assert driver.metric_reaches("kvlingua_refusals_total", counted + 2, reason="lora")
    for said in ("an adapter with rank_pattern", "SGLang reads more.safetensors"):
        assert driver.log_text().count(said) == 1
    digests = {adapter_digest(stored.folders[name]) for name in ("a", "b", "stronger")}
    assert set(namespaces(stored.store)) == {None, *digests}
    for name in ("b", "stronger"):
        assert tokens(driver, f"my {name}", all_of_it) == stored.cold[name]


def test_together(driver: Driver, stored: Stored) -> None:
    """Requests without an adapter, too, in prefills and decodes beside those with one: loaded; computed and stored; and
    what was stored then, loaded."""
    names = (None, "b", "a", None)
    objects = driver.objects()
    for ask, is_stored in ((TEXT, True), (OTHER, False), (OTHER, True)):
        assert driver.call("flush_cache")
        reply = driver.generate(*(with_adapter(ask, name and f"my {name}") for name in names))
        cold = stored.cold if ask is TEXT else stored.cold_other
        assert [answer.tokens for answer in reply.answers] == [cold[name] for name in names]
        if is_stored:
            assert reply.computed <= 4 * (length(ask) - taken(PAGE, ask)), "less where the first one's is there already"
        else:
            assert reply.reused == 0
            driver.wait_objects(objects + 3 * whole(OTHER))


def test_transformers_finds_what_sglang_has_computed(driver: Driver, stored: Stored) -> None:
    with Driver("hf", MODEL, log=stored.root / "again.log", url=stored.store.as_uri(), role="consumer") as other:
        other.call("use_adapter", folder=str(stored.folders["b"]))
        reply = other.generate(TEXT)
        assert (reply.answers[0].tokens, reply.reused) == (stored.cold["b"], taken(1, TEXT))


def test_the_stored_values_are_what_is_used(driver: Driver, stored: Stored) -> None:
    """Those of one adapter are spoiled."""
    namespace = namespaces(stored.store)[adapter_digest(stored.folders["stronger"])]
    apart = stored.root / "apart" / namespace.name
    apart.parent.mkdir()
    shutil.move(namespace, apart)
    assert negate_v(apart.parent) >= chunks(TEXT)
    shutil.move(apart, namespace)
    assert tokens(driver, "my stronger", taken(PAGE, TEXT)) != stored.cold["stronger"]
    assert tokens(driver, "my a", taken(PAGE, TEXT)) == stored.cold["a"]


def test_adapters_that_come_and_go(driver: Driver, stored: Stored) -> None:
    """One after the other under one name; and a folder whose files change while the engine runs."""
    all_of_it, later, changed = taken(PAGE, TEXT), stored.folders["later"], stored.folders["changed"]

    def load(folder: Path) -> None:
        before = driver.log_text().count(f"adapter in {folder} is known")
        assert driver.call("load_lora_adapter", lora_name="guest", lora_path=str(folder)) == ""
        wait_until_known(driver, folder, times=before + 1)

    def unload() -> None:
        assert driver.call("unload_lora_adapter", lora_name="guest") == ""

    objects = driver.objects()
    load(later)
    assert tokens(driver, "guest", 0) == stored.cold["later"]
    driver.wait_objects(objects + whole(TEXT))
    assert tokens(driver, "guest", all_of_it) == stored.cold["later"]
    unload()
    load(stored.folders["a"])
    assert tokens(driver, "guest", all_of_it) == stored.cold["a"]
    unload()
    load(changed)
    assert tokens(driver, "guest", 0) == stored.cold["changed"]
    driver.wait_objects(objects + 2 * whole(TEXT))
    assert tokens(driver, "guest", all_of_it) == stored.cold["changed"]

    random_adapter(changed, 3, ATTENTION, scale=0.5)  # the same as "later", which is stored, and not what SGLang has
    counted = driver.metric("kvlingua_refusals_total", reason="lora")
    assert tokens(driver, "guest", 0) == stored.cold["changed"]
    assert driver.metric_reaches("kvlingua_refusals_total", counted + 1, reason="lora")
    assert f"{changed / CONFIG} changed after it was loaded" in driver.log_text()
    unload()
    load(changed)
    assert tokens(driver, "guest", all_of_it) == stored.cold["later"], "known by what is there now"
