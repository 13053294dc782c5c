"""Models with latent attention (DeepSeek V2 and V3): what vLLM and transformers keep of a token is the same latent and
the same rotated key, and either reuses what the other has stored. Where vLLM rotates keys wrongly, kvlingua is off. The
answers to compare with are those of transformers."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engines.drivers.protocol import Ask
from tests.engines.texts import CHUNK, chunks, objects_of, taken
from tests.engines.vllm.beside_hf import REUSED, answers, cold, cut, spoiled, warm
from tests.engines.vllm.conftest import Launcher, needs_support
from tests.engines.vllm.latent import LAYERS, make_model
from tests.engines.vllm.test_refusals import said_off
from tests.spoil import flip_byte

pytestmark = [pytest.mark.thorough, needs_support("latent attention (MLA)")]

PAGE = 16  # the only one that this attention has on CPUs
NATIVE = {"engine": {"compilation_config": {"custom_ops": ["-rotary_embedding"]}}}
COMPILED = {"processes": True, "engine": {"enforce_eager": False}}  # as users run it, with no setting
OWN, THEIRS = [cut(seed) for seed in range(140, 143)], [cut(seed) for seed in range(143, 146)]
UNKNOWN = cut(148)
SHORT = replace(cut(146), prompt=cut(146).prompt[: REUSED + 1])  # of which one token is computed, as in a decode
LONG = cut(147, max_tokens=120)


@pytest.mark.parametrize(
    ("family", "options"),
    [
        pytest.param("DeepseekV2", COMPILED, id="v2-compiled"),
        pytest.param("DeepseekV3", NATIVE, id="v3-eager"),
    ],
)
def test_either_reuses_what_the_other_has_stored(
    launch: Launcher, tmp_path: Path, family: str, options: dict[str, Any]
) -> None:
    model, store = make_model(tmp_path / "model", family), tmp_path / "store"
    theirs = [*THEIRS, SHORT]
    right, right_theirs = cold(model, *OWN), cold(model, *theirs)
    assert warm(model, store, *theirs) == (right_theirs, 0)
    stored = chunks(*theirs, *OWN)
    with launch(store, model=tmp_path / "model", page=PAGE, **options) as driver:
        assert driver.switched_on
        assert answers(driver, *theirs) == (right_theirs, taken(PAGE, *theirs))
        assert answers(driver, *OWN) == (right, 0)
        driver.wait_objects(stored)
        assert answers(driver, *OWN) == (right, taken(PAGE, *OWN))

        tokens, reused = answers(driver, THEIRS[0], UNKNOWN, THEIRS[1])
        assert tokens == [right_theirs[0], *cold(model, UNKNOWN), right_theirs[1]], "hits and a miss in one batch"
        assert reused == taken(PAGE, *THEIRS[:2])
        stored += chunks(UNKNOWN)

        for ask, expected in ((THEIRS[0], right_theirs[0]), (SHORT, right_theirs[-1])):
            for layer in range(LAYERS):
                with spoiled(objects_of(store, ask), layer):
                    tokens, reused = answers(driver, ask)
                    assert (tokens != [expected], reused) == (True, REUSED), f"layer {layer} is loaded and attended to"

        flip_byte(objects_of(store, OWN[1])[1])
        tokens, reused = answers(driver, *OWN)
        assert tokens == right, "where a load has failed, too"
        assert reused < taken(PAGE, *OWN)
        assert driver.metric_reaches("kvlingua_corrupt_objects_total", 1)
        driver.wait_objects(stored)
        assert answers(driver, *OWN) == (right, taken(PAGE, *OWN))

        (said,), _ = answers(driver, LONG)
        assert [said] == cold(model, LONG)
        driver.wait_objects(stored + (len(LONG.prompt) + LONG.max_tokens - 1) // CHUNK)
    assert warm(model, store, *OWN) == (right, REUSED * len(OWN))
    turn = Ask([*LONG.prompt, *said, *SHORT.prompt[:CHUNK]], 8)
    kept = (len(LONG.prompt) + LONG.max_tokens - 1) // CHUNK * CHUNK
    assert warm(model, store, turn) == (cold(model, turn), kept), "what vLLM has generated transformers reuses"
    with spoiled(objects_of(store, OWN[0]), 0):
        tokens, reused = warm(model, store, OWN[0])
        assert (tokens != right[:1], reused) == (True, REUSED)


def test_where_keys_are_rotated_wrongly_it_is_off(launch: Launcher, tmp_path: Path) -> None:
    """By vLLM's own operator: its answers aren't those of transformers then."""
    model, store = make_model(tmp_path / "model", "DeepseekV2"), tmp_path / "store"
    with launch(store, model=tmp_path / "model", page=PAGE) as driver:
        assert not driver.switched_on
        tokens, reused = answers(driver, *OWN)
        assert (tokens != cold(model, *OWN), reused) == (True, 0)
        assert len(said_off(driver, 'off: .*"-rotary_embedding"')) == len(said_off(driver, "off: ")) == 1
    assert not store.exists()
