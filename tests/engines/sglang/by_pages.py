"""What SGLang's two ways by hashes of pages, its linker and HiCache, must do alike, on what transformers has stored: it
is reused with its tokens, and the other way round, salts included; spoiled, it changes them, or is computed anew."""

from dataclasses import replace
from pathlib import Path

from demo.job import MODEL
from engines.drivers.driver import Driver
from kvlingua.common.identity.chain import chain_digests, request_seed
from tests.engines.releases import FLIPPED, NEGATED, PLAIN, PRODUCED, Stored
from tests.engines.texts import CHUNK, length, taken

SALTED = replace(PRODUCED, cache_salt="red", extra_key="blue")


def check_reuse(driver: Driver, stored: Stored, store: Path, objects: int) -> None:
    """`store`: the spoiled copy that the driver has, of pages as long as chunks. `objects`: how many there are once
    what lacked is stored. At the end weights are changed."""
    assert driver.switched_on
    reply = driver.generate(PLAIN)
    assert reply.answers[0].tokens == stored.plain
    assert (reply.reused, reply.local) == (taken(CHUNK, PLAIN), 0)
    assert reply.computed == length(PLAIN) - taken(CHUNK, PLAIN)
    reply = driver.generate(NEGATED)
    assert reply.reused + reply.local == taken(CHUNK, NEGATED)
    assert reply.answers[0].tokens != stored.negated, "the stored values are what is used"
    reply = driver.generate(FLIPPED)
    assert (reply.answers[0].tokens, reply.reused) == (stored.flipped, 0), "recomputed, not given up"
    for ask in (PRODUCED, SALTED):
        reply = driver.generate(ask)
        assert (reply.answers[0].tokens, reply.reused, reply.local) == (stored.produced, 0, 0)
    driver.wait_objects(objects)
    names = {path.name.partition("-")[0] for path in store.rglob("*.safetensors")}
    seed = request_seed(SALTED.extra_key, SALTED.cache_salt)
    assert names.issuperset(digest.hex() for digest in chain_digests(SALTED.prompt, CHUNK, seed))
    assert driver.call("flush_cache"), "nothing is held any more"
    asks = [PLAIN, FLIPPED, PLAIN, PRODUCED, SALTED]
    reply = driver.generate(*asks)
    expected = [stored.plain, stored.flipped, stored.plain, stored.produced, stored.produced]
    assert [answer.tokens for answer in reply.answers] == expected
    assert reply.computed == length(*asks) - taken(CHUNK, *asks), "nothing that is stored is computed"
    assert driver.call("flush_cache")
    assert driver.call("update_weights_from_disk", model_path=str(MODEL))
    reply = driver.generate(PLAIN)
    assert (reply.answers[0].tokens, reply.reused) == (stored.plain, 0)
    assert "off: SGLang's weights were changed while it ran" in driver.log_text()


def check_transformers_reuses(stored: Stored, store: Path, log: Path) -> None:
    with Driver("hf", MODEL, log=log, url=store.as_uri(), page=1) as driver:
        reply = driver.generate(PRODUCED)
        assert (reply.answers[0].tokens, reply.reused) == (stored.produced, taken(1, PRODUCED))


def check_refusal(driver: Driver, chunk: int) -> None:
    """Of pages of 16 tokens, in one line; SGLang runs as if there were no store."""
    assert not driver.switched_on
    first, second = driver.generate(PLAIN), driver.generate(PLAIN)
    assert first.answers[0].tokens == second.answers[0].tokens
    assert (first.reused, first.local, first.computed) == (0, 0, length(PLAIN))
    assert (second.reused, second.local) == (0, length(PLAIN) // 16 * 16), "SGLang's own prefix cache works"
    said = [each for each in driver.log_text().splitlines() if "off: " in each]
    assert len(said) == 1, said
    assert f"--page-size is 16, chunk_tokens is {chunk}" in said[0]
    assert driver.metric_reaches("kvlingua_refusals_total", 1, adapter="sglang", reason="page_size")
