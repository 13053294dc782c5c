"""Objects of several requests of one batch that are damaged after their hits were promised. One damaged object, and
stores in trouble, are the conformance suite's."""

import os
from pathlib import Path

from engines.drivers.driver import Driver
from engines.drivers.protocol import Ask
from tests.engines.texts import chunks, length, objects_of, text
from tests.engines.vllm.conftest import Launcher
from tests.spoil import flip_byte

TEXTS = [text(seed) for seed in range(30, 34)]


def tokens(driver: Driver, *asks: Ask) -> list[list[int]]:
    return [answer.tokens for answer in driver.generate(*asks).answers]


def test_loads_that_fail_after_the_promise(launch: Launcher, tmp_path: Path) -> None:
    """In one batch: a whole text, one with a flipped byte, one whose objects are empty, the flipped one once more.

    A lookup asks which objects there are, so nothing is noticed before the load.
    """
    store = tmp_path / "store"
    engine = {"max_num_batched_tokens": 256, "enable_prefix_caching": False}
    with launch(store, engine=engine) as driver:
        right = tokens(driver, *TEXTS)
        driver.wait_objects(chunks(*TEXTS))
        flip_byte(objects_of(store, TEXTS[1])[3])
        for path in objects_of(store, TEXTS[2]):
            os.truncate(path, 0)
        batch = driver.generate(TEXTS[0], TEXTS[1], TEXTS[2], TEXTS[1])
        assert [answer.tokens for answer in batch.answers] == [right[0], right[1], right[2], right[1]]
        assert driver.metric_reaches("kvlingua_refusals_total", 2, adapter="vllm")
        assert driver.metric_reaches("kvlingua_corrupt_objects_total", 2)
        assert "load failed" in driver.log_text()
        driver.wait_objects(chunks(*TEXTS))
        mended = driver.generate(*TEXTS)
        assert [answer.tokens for answer in mended.answers] == right
        assert mended.reused + mended.computed == length(*TEXTS)
        assert mended.reused >= 3 * (length(TEXTS[0]) - 96), "what was damaged has been stored anew"
