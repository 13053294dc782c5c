"""Earlier releases of SGLang, against transformers in fp32, at several page sizes: what it has stored is reused
with its tokens, and the other way round; spoiled, it changes them, or is computed anew. Run where their environments
are built: `python -m engines build sglang==0.5.22`."""

import time
from pathlib import Path

import pytest

from demo.job import MODEL
from engines.drivers.driver import Driver
from engines.drivers.protocol import Ask
from engines.recipe import all_names
from kvlingua.common.prefix import reusable_tokens
from kvlingua.common.supported import SGLANG
from tests.engines.reference import answer
from tests.engines.releases import ASKS, FLIPPED, NEGATED, PLAIN, PRODUCED, Stored, needs, spoiled_copy, store_all
from tests.engines.sglang.in_engine import run
from tests.engines.texts import CHUNK, chunks, length, taken, text, whole

pytestmark = pytest.mark.thorough

KNOWN = [name for name in all_names() if name.startswith("sglang==")]
RELEASES = [name for name in KNOWN if SGLANG.supports(name.partition("==")[2])]
# On a CPU 0.5.20 and 0.5.21 themselves fail with larger pages: their allocator of pages is a kernel for GPUs.
PAGES = {"sglang==0.5.20": (1,), "sglang==0.5.21": (1,), "sglang==0.5.22": (1, 16, 64)}
CHAT = text(141, tokens=300, max_tokens=200)
CASES = [(release, page) for release in RELEASES for page in PAGES[release]]


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Stored:
    return store_all(tmp_path_factory.mktemp("releases"))


def emptied(driver: Driver) -> bool:
    """Whether SGLang empties its prefix cache; it refuses for a moment while an answered request is still listed."""
    for _ in range(20):
        if driver.call("flush_cache"):
            return True
        time.sleep(0.1)
    return False


@pytest.mark.parametrize(("release", "page"), CASES)
def test_a_release(release: str, page: int, stored: Stored, tmp_path: Path) -> None:
    needs(release)
    store = spoiled_copy(stored, tmp_path / "store")
    with Driver(release, MODEL, log=tmp_path / "sglang.log", url=store.as_uri(), page=page) as driver:
        assert driver.switched_on
        reply = driver.generate(PLAIN)
        assert reply.answers[0].tokens == stored.plain
        assert (reply.reused, reply.local) == (taken(page, PLAIN), 0)
        assert reply.computed == length(PLAIN) - taken(page, PLAIN)
        reply = driver.generate(NEGATED)
        assert reply.reused + reply.local == taken(page, NEGATED)
        assert reply.answers[0].tokens != stored.negated, "the stored values are what is used"
        reply = driver.generate(FLIPPED)
        assert (reply.answers[0].tokens, reply.reused) == (stored.flipped, 0)
        assert driver.generate(PRODUCED).answers[0].tokens == stored.produced
        assert emptied(driver)
        reply = driver.generate(PLAIN, FLIPPED, PLAIN, PRODUCED)
        assert [one.tokens for one in reply.answers] == [
            stored.plain,
            stored.flipped,
            stored.plain,
            stored.produced,
        ]
        assert driver.generate(CHAT).answers[0].tokens == answer(CHAT)
        driver.wait_objects(whole(*ASKS, CHAT))
        assert emptied(driver), "nothing is held any more"
        turn = Ask([*CHAT.prompt, *answer(CHAT), *CHAT.prompt[-20:]])
        reply = driver.generate(turn)
        assert reply.answers[0].tokens == answer(turn)
        assert reply.reused == reusable_tokens(whole(CHAT) * CHUNK, length(turn), page), "what it has generated, too"
        assert whole(CHAT) > chunks(CHAT) + 1
        assert emptied(driver), "nothing is held any more"
        assert driver.call("update_weights_from_disk", model_path=str(MODEL))
        reply = driver.generate(PLAIN)
        assert (reply.answers[0].tokens, reply.reused) == (stored.plain, 0)
        assert "off: SGLang's weights were changed while it ran" in driver.log_text()
    with Driver("hf", MODEL, log=tmp_path / "hf.log", url=store.as_uri(), page=1) as driver:
        reply = driver.generate(PRODUCED)
        assert (reply.answers[0].tokens, reply.reused) == (stored.produced, taken(1, PRODUCED))


@pytest.mark.parametrize("release", RELEASES)
def test_requests_of_a_release(release: str, tmp_path: Path) -> None:
    """Every kind that passes through, and memory that loads hold: as in test_link."""
    needs(release)
    found = run("requests_process.py", str(MODEL), str(tmp_path), release=release)
    right = {"set": True, "promised": [0, 0], "grown": [0, 0], "control": [128, 1]}
    assert found["passing"] == dict.fromkeys(found["marks"], right)
    assert found["holding"]["promised again"] == [128, 0]
    assert found["holding"]["no memory"] == [False, 0, 0]


@pytest.mark.parametrize("release", RELEASES)
def test_arguments_of_a_release(release: str) -> None:
    """LoRA and ranks were run from 0.5.22 on. Beyond what rope scales 0.5.20 goes on without YaRN's scaling, every one
    without the linear."""
    needs(release)
    found = run("arguments_process.py", str(MODEL), str(MODEL), release=release)
    assert found["plain"] == "understood"
    assert [name for name, case in found["cases"].items() if case["outcome"] == "understood"] == []
    early = f"never run with SGLang {release[8:]}" if release < "sglang==0.5.22" else "understood"
    assert early in found["LoRA"]
    assert early in found["two ranks"]
    stretched = {"linear, longer", "yarn, longer"} if release == "sglang==0.5.20" else {"linear, longer"}
    assert {name for name, said in found["contexts"].items() if said != "understood"} == stretched


@pytest.mark.parametrize("release", RELEASES)
def test_every_way_to_write_weights_is_watched(release: str) -> None:
    """What is left of the updater's methods joins and leaves groups, receives without loading, or ends a session."""
    needs(release)
    found = run("writers_process.py", release=release)
    assert found["called"] == dict.fromkeys(found["called"], True)
    assert len(found["called"]) > 5
    harmless = {"init_weights_update_group", "destroy_weights_update_group"}
    sessions = {"receive_weights_from_distributed", "end_weight_update"}  # new in 0.5.21
    assert set(found["unwatched"]) in (harmless, harmless | sessions)
