"""Earlier releases of vLLM, against transformers in fp32, at two block sizes: what transformers has stored is reused
with its tokens, and the other way round; spoiled, it changes them, or is computed anew. Run where their environments
are built: `python -m engines build vllm==0.31.0`."""

import shutil
from pathlib import Path

import pytest

from demo.job import MODEL
from engines.drivers.driver import Driver
from engines.launch import available
from engines.recipe import all_names
from kvlingua.common.supported import VLLM
from tests.engines.texts import chunks, length, objects_of, taken, text
from tests.engines.vllm.conftest import INSIDE
from tests.spoil import flip_byte, negate_v

PLAIN, NEGATED, FLIPPED, PRODUCED = ASKS = [text(seed) for seed in range(300, 304)]
RELEASES = [name for name in all_names() if name.startswith("vllm==")]
CASES = [(release, page) for release in RELEASES if VLLM.supports(release[6:]) for page in (32, 128)]
UNKNOWN = [release for release in RELEASES if not VLLM.supports(release[6:])]


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

    engine = {"enable_prefix_caching": False}
    options = {"url": store.as_uri(), "page": page, "settings": INSIDE, "engine": engine}
    with Driver(release, MODEL, log=tmp_path / "vllm.log", **options) as driver:
        assert driver.switched_on
        assert driver.ready.version.startswith(release[6:])
        reply = driver.generate(PLAIN)
        assert reply.answers[0].tokens == plain
        assert (reply.reused, reply.computed) == (taken(page, PLAIN), length(PLAIN) - taken(page, PLAIN))
        reply = driver.generate(NEGATED)
        assert reply.reused == taken(page, NEGATED)
        assert reply.answers[0].tokens != negated, "the stored values are what is used"
        assert driver.generate(FLIPPED).answers[0].tokens == flipped
        assert driver.metric_reaches("kvlingua_corrupt_objects_total", 1)
        before = driver.objects()
        assert driver.generate(PRODUCED).answers[0].tokens == produced
        driver.wait_objects(before + chunks(PRODUCED))
    with Driver("hf", MODEL, log=tmp_path / "hf.log", url=store.as_uri(), page=1, role="consumer") as driver:
        reply = driver.generate(PRODUCED)
        assert reply.answers[0].tokens == produced
        assert reply.reused == taken(1, PRODUCED), "what this release has stored"


@pytest.mark.parametrize("release", UNKNOWN)
def test_a_release_that_was_never_run(release: str, tmp_path: Path) -> None:
    """It is refused by name, and answers."""
    needs(release)
    with Driver(
        release, MODEL, log=tmp_path / "vllm.log", url=(tmp_path / "store").as_uri(), page=32, settings=INSIDE
    ) as driver:
        assert len(driver.generate(PLAIN).answers[0].tokens) == PLAIN.max_tokens
        assert f"off: vLLM {release[6:]}" in driver.log_text()
    assert not (tmp_path / "store").exists()
