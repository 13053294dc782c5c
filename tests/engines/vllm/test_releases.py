"""Earlier releases of vLLM, against transformers in fp32, at two block sizes: what transformers has stored is reused
with its tokens, and the other way round; spoiled, it changes them, or is computed anew. Run where their environments
are built: `python -m engines build vllm==0.31.0`."""

from pathlib import Path

import pytest

from demo.job import MODEL
from engines.drivers.driver import Driver
from engines.recipe import all_names
from tests.engines.releases import FLIPPED, NEGATED, PLAIN, PRODUCED, Stored, needs, spoiled_copy, store_all
from tests.engines.texts import chunks, length, taken
from tests.engines.vllm.conftest import INSIDE

pytestmark = pytest.mark.thorough

CASES = [(name, page) for name in all_names() if name.startswith("vllm==") for page in (32, 128)]


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Stored:
    return store_all(tmp_path_factory.mktemp("releases"))


@pytest.mark.parametrize(("release", "page"), CASES)
def test_a_release(release: str, page: int, stored: Stored, tmp_path: Path) -> None:
    needs(release)
    store = spoiled_copy(stored, tmp_path / "store")
    engine = {"enable_prefix_caching": False}
    options = {"url": store.as_uri(), "page": page, "settings": INSIDE, "engine": engine}
    with Driver(release, MODEL, log=tmp_path / "vllm.log", **options) as driver:
        assert driver.switched_on
        assert driver.ready.version.startswith(release[6:])
        reply = driver.generate(PLAIN)
        assert reply.answers[0].tokens == stored.plain
        assert (reply.reused, reply.computed) == (taken(page, PLAIN), length(PLAIN) - taken(page, PLAIN))
        reply = driver.generate(NEGATED)
        assert reply.reused == taken(page, NEGATED)
        assert reply.answers[0].tokens != stored.negated, "the stored values are what is used"
        assert driver.generate(FLIPPED).answers[0].tokens == stored.flipped
        assert driver.metric_reaches("kvlingua_corrupt_objects_total", 1)
        before = driver.objects()
        assert driver.generate(PRODUCED).answers[0].tokens == stored.produced
        driver.wait_objects(before + chunks(PRODUCED))
    with Driver("hf", MODEL, log=tmp_path / "hf.log", url=store.as_uri(), page=1, role="consumer") as driver:
        reply = driver.generate(PRODUCED)
        assert reply.answers[0].tokens == stored.produced
        assert reply.reused == taken(1, PRODUCED), "what this release has stored"
