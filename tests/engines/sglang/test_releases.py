"""Earlier releases of SGLang, against transformers in fp32, at three page sizes: what transformers has stored is reused
with its tokens, and the other way round; spoiled, it changes them, or is computed anew. Run where their environments
are built: `python -m engines build sglang==0.5.22`."""

import shutil
from pathlib import Path

import pytest

from demo.job import MODEL
from engines.drivers.driver import Driver
from engines.launch import available
from engines.recipe import all_names
from kvlingua.common.supported import SGLANG
from tests.engines.sglang.in_engine import run
from tests.engines.texts import chunks, length, objects_of, taken, text
from tests.spoil import flip_byte, negate_v

PLAIN, NEGATED, FLIPPED, PRODUCED = ASKS = [text(seed) for seed in range(300, 304)]
RELEASES = [name for name in all_names() if name.startswith("sglang==") and SGLANG.supports(name.partition("==")[2])]
CASES = [(release, page) for release in RELEASES for page in (1, 16, 64)]


def needs(release: str) -> None:
    if not available(release):
        pytest.skip(f"its environment isn't built: python -m engines build {release}")


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[list[int]]]:
    """What transformers has stored of all texts, and its answers."""
    folder = tmp_path_factory.mktemp("releases")
    with Driver("hf", MODEL, log=folder / "hf.log", url=(folder / "store").as_uri(), page=1) as driver:
        answers = [driver.generate(ask).answers[0].tokens for ask in ASKS]
        driver.wait_objects(chunks(*ASKS))
    return folder / "store", answers


@pytest.mark.parametrize(("release", "page"), CASES)
def test_a_release(release: str, page: int, stored: tuple[Path, list[list[int]]], tmp_path: Path) -> None:
    needs(release)
    plain, negated, flipped, produced = stored[1]
    store = shutil.copytree(stored[0], tmp_path / "store")
    for path in objects_of(store, PRODUCED):
        path.unlink()
    apart = tmp_path / "apart"
    for path in objects_of(store, NEGATED):
        (apart / path.parent.name).mkdir(parents=True, exist_ok=True)
        path.rename(apart / path.parent.name / path.name)
    assert negate_v(apart) == chunks(NEGATED)
    shutil.copytree(apart, store, dirs_exist_ok=True)
    flip_byte(objects_of(store, FLIPPED)[3])

    with Driver(release, MODEL, log=tmp_path / "sglang.log", url=store.as_uri(), page=page) as driver:
        assert driver.switched_on
        reply = driver.generate(PLAIN)
        assert reply.answers[0].tokens == plain
        assert (reply.reused, reply.local) == (taken(page, PLAIN), 0)
        assert reply.computed == length(PLAIN) - taken(page, PLAIN)
        reply = driver.generate(NEGATED)
        assert reply.reused + reply.local == taken(page, NEGATED)
        assert reply.answers[0].tokens != negated, "the stored values are what is used"
        reply = driver.generate(FLIPPED)
        assert (reply.answers[0].tokens, reply.reused) == (flipped, 0)
        assert driver.generate(PRODUCED).answers[0].tokens == produced
        assert driver.call("flush_cache")
        reply = driver.generate(PLAIN, FLIPPED, PLAIN, PRODUCED)
        assert [answer.tokens for answer in reply.answers] == [plain, flipped, plain, produced]
        driver.wait_objects(chunks(*ASKS))
        assert driver.call("flush_cache"), "nothing is held any more"
        assert driver.call("update_weights_from_disk", model_path=str(MODEL))
        reply = driver.generate(PLAIN)
        assert (reply.answers[0].tokens, reply.reused) == (plain, 0)
        assert "off: SGLang's weights were changed while it ran" in driver.log_text()
    with Driver("hf", MODEL, log=tmp_path / "hf.log", url=store.as_uri(), page=1) as driver:
        reply = driver.generate(PRODUCED)
        assert (reply.answers[0].tokens, reply.reused) == (produced, taken(1, PRODUCED))


@pytest.mark.parametrize("release", RELEASES)
def test_requests_of_a_release(release: str, tmp_path: Path) -> None:
    """Every kind that passes through, and memory that loads hold: as in test_link."""
    needs(release)
    found = run("requests_process.py", str(MODEL), str(tmp_path), release=release)
    right = {"set": True, "promised": [0, 0], "grown": [0, 0], "control": [128, 1]}
    assert found["passing"] == dict.fromkeys(found["marks"], right)
    assert found["holding"]["promised again"] == [128, 0]
    assert found["holding"]["no memory"] == [False, 0, 0]
