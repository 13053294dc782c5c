"""Earlier releases of SGLang, against transformers in fp32, at several page sizes: what it has stored is reused
with its tokens, and the other way round; spoiled, it changes them, or is computed anew. Run where their environments
are built: `python -m engines build sglang==0.5.22`."""

from pathlib import Path

import pytest

from demo.job import MODEL
from engines.drivers.driver import Driver
from engines.recipe import all_names
from kvlingua.common.supported import SGLANG
from tests.engines.releases import ASKS, FLIPPED, NEGATED, PLAIN, PRODUCED, Stored, needs, spoiled_copy, store_all
from tests.engines.sglang.in_engine import run
from tests.engines.texts import chunks, length, taken

pytestmark = pytest.mark.thorough

KNOWN = [name for name in all_names() if name.startswith("sglang==")]
RELEASES = [name for name in KNOWN if SGLANG.supports(name.partition("==")[2])]
REFUSED = [name for name in KNOWN if name not in RELEASES]
# On a CPU 0.5.21 itself fails with larger pages: its allocator of pages is a kernel for GPUs.
PAGES = {"sglang==0.5.21": (1,), "sglang==0.5.22": (1, 16, 64)}
CASES = [(release, page) for release in RELEASES for page in PAGES[release]]


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Stored:
    return store_all(tmp_path_factory.mktemp("releases"))


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
        assert driver.call("flush_cache")
        reply = driver.generate(PLAIN, FLIPPED, PLAIN, PRODUCED)
        assert [answer.tokens for answer in reply.answers] == [
            stored.plain,
            stored.flipped,
            stored.plain,
            stored.produced,
        ]
        driver.wait_objects(chunks(*ASKS))
        assert driver.call("flush_cache"), "nothing is held any more"
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
def test_lora_in_a_release_where_it_was_not_run(release: str) -> None:
    needs(release)
    found = run("arguments_process.py", str(MODEL), str(MODEL), release=release)
    assert found["plain"] == "understood"
    assert f"LoRA was never run with SGLang {release.partition('==')[2]}" in found["LoRA"]


@pytest.mark.parametrize("release", REFUSED)
def test_a_release_that_is_refused(release: str, tmp_path: Path) -> None:
    """It says so, and answers."""
    needs(release)
    url = (tmp_path / "store").as_uri()
    with Driver(release, MODEL, log=tmp_path / "sglang.log", url=url, page=1) as driver:
        assert not driver.switched_on
        assert len(driver.generate(PLAIN).answers[0].tokens) == PLAIN.max_tokens
        assert f"off: SGLang {release.partition('==')[2]} was never run" in driver.log_text()
    assert not (tmp_path / "store").exists()
