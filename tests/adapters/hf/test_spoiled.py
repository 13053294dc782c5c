"""Damage: what is loaded is used, what is damaged isn't, and a load that fails is computed instead."""

import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from kvlingua.adapters import hf
from kvlingua.common import log
from kvlingua.common.config import Config
from kvlingua.common.metrics import REGISTRY
from tests import spoil
from tests.adapters.hf.tiny import cold, left_padded, prompt, warm
from tests.hanging import hanging_folder

Attached = Callable[..., Any]


@pytest.fixture
def root(config: Config) -> Path:
    return Path(config.url.removeprefix("file://"))


def refusals(reason: str) -> float:
    return REGISTRY.get_sample_value("kvlingua_refusals_total", {"adapter": "hf", "reason": reason}) or 0.0


def last(model: Any) -> tuple[int, int]:
    return model.kvlingua.last.reused, model.kvlingua.last.computed


@pytest.mark.parametrize("padded", [False, True])
def test_negated_values_change_the_tokens(attached: Attached, root: Path, padded: bool) -> None:
    """The control of every test that says equal tokens: these models do look at what was loaded."""
    model = attached()
    batch = left_padded(prompt(80, seed=1), prompt(70, seed=2)) if padded else {"inputs": prompt(80, seed=1)}
    expected = cold(model, **batch)
    warm(model, **batch)
    assert torch.equal(warm(model, **batch), expected)
    assert last(model) == ((74, 6) if padded else (79, 1))
    assert spoil.negate_v(root) > 0
    other = attached()
    spoiled = warm(other, **batch)
    assert last(other) == ((74, 6) if padded else (79, 1))
    for row in range(len(expected)):
        assert not torch.equal(spoiled[row], expected[row])


@pytest.mark.parametrize("damage", [spoil.flip_byte, spoil.truncate, spoil.garbage, spoil.swap])
def test_a_damaged_object_is_refused_and_removed(attached: Attached, root: Path, damage: Callable[[Path], int]) -> None:
    model, ids = attached(), prompt(80)
    expected = cold(model, ids)
    warm(model, ids)
    assert damage(root) == 5
    other, before = attached(), refusals("load")
    assert torch.equal(warm(other, ids), expected)
    assert last(other) == (0, 80)
    assert refusals("load") == before + 1
    assert torch.equal(warm(other, ids), expected)  # what was removed was stored again by the call that computed it
    assert last(other) == (79, 1)


def test_one_damaged_chunk_is_stored_again(attached: Attached, root: Path) -> None:
    """By the call that recomputed it, though its lookup had found all of the row."""
    model = attached()
    batch = left_padded(prompt(80, seed=1), prompt(70, seed=2))
    expected = cold(model, **batch)
    warm(model, **batch)
    stored = {path: path.read_bytes() for path in spoil.objects(root)}
    damaged = next(iter(stored))
    damaged.write_bytes(stored[damaged][:-1] + bytes([stored[damaged][-1] ^ 1]))
    other = attached()
    for now in ((0, 80), (74, 6)):
        assert torch.equal(warm(other, **batch), expected)
        assert last(other) == now
        assert {path: path.read_bytes() for path in spoil.objects(root)} == stored


@pytest.mark.parametrize("gone", ["one", "all"])
def test_an_object_that_goes_between_lookup_and_load(
    attached: Attached, root: Path, gone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real lookup, then another process's eviction, then the real load."""
    model = attached()
    batch = left_padded(prompt(80, seed=1), prompt(70, seed=2))
    expected = cold(model, **batch)
    warm(model, **batch)
    cache = model.kvlingua.cache
    lookup, rows = cache.lookup, []

    def lookup_then_evict(*args: Any, **kwargs: Any) -> Any:
        hit = lookup(*args, **kwargs)
        rows.append(hit.tokens)
        if len(rows) == 2:
            removed = spoil.objects(root)
            for path in removed if gone == "all" else removed[-1:]:
                path.unlink()
        return hit

    monkeypatch.setattr(cache, "lookup", lookup_then_evict)
    assert torch.equal(warm(model, **batch), expected)
    assert rows == [80, 64]
    assert last(model) == (0, 80)
    assert torch.equal(warm(model, **batch), expected)
    assert last(model) == (74, 6)


def test_a_load_that_fails_in_the_second_row_leaves_no_half_filled_cache(attached: Attached, root: Path) -> None:
    model = attached()
    first, second = prompt(80, seed=1), prompt(70, seed=2)
    warm(model, first)
    kept = set(spoil.objects(root))
    warm(model, second)
    for path in set(spoil.objects(root)) - kept:
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
    batch = left_padded(first, second)
    other = attached()
    assert torch.equal(warm(other, **batch), cold(other, **batch))
    assert last(other) == (0, 80)


def test_a_store_that_can_not_be_written(
    attached: Attached, root: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file in the way of the folder, so that it fails for root too: one line, and a count for each call."""
    monkeypatch.setattr(log, "_seen", {})
    root.parent.mkdir(exist_ok=True)
    root.write_text("in the way")
    model, ids, before = attached(), prompt(80), refusals("store")
    for _ in range(2):
        assert torch.equal(model.generate(ids, max_new_tokens=8), cold(model, ids))
        assert last(model) == (0, 80)
    assert refusals("store") == before + 2
    (line,) = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert line.startswith(f"hf: lookup failed (store), treated as a miss: the store at {root}: Not a directory")


def test_a_store_full_of_strange_things(attached: Attached, root: Path) -> None:
    model, ids = attached(), prompt(80)
    expected = cold(model, ids)
    warm(model, ids)
    for number, path in enumerate(spoil.objects(root)):
        path.unlink()
        if number == 0:
            path.symlink_to("/dev/zero")
        elif number == 1:
            os.mkfifo(path)
        elif number == 2:
            path.mkdir()
        else:
            path.write_bytes(b"")
    assert any(stat.S_ISFIFO(path.lstat().st_mode) for path in spoil.objects(root))
    other = attached()
    for _ in range(3):
        assert torch.equal(other.generate(ids, max_new_tokens=8), expected)


def test_a_store_that_is_removed_meanwhile(attached: Attached, root: Path) -> None:
    model, ids = attached(), prompt(80)
    expected = cold(model, ids)
    warm(model, ids)
    shutil.rmtree(root)
    assert torch.equal(model.generate(ids, max_new_tokens=8), expected)
    assert last(model) == (0, 80)


def test_a_store_that_hangs(attached: Attached, tmp_path: Path) -> None:
    model, ids = attached(), prompt(80)
    expected = cold(model, ids)
    with hanging_folder(tmp_path) as folder:
        url = f"file://{folder.path / 'store'}"
        model = attached(url=url, lookup_timeout_s=0.3, load_timeout_s=0.3)
        warm(model, ids)
        warm(model, ids)
        assert last(model) == (79, 1)
        folder.freeze()
        before = refusals("store_timeout")
        for _ in range(3):
            assert torch.equal(model.generate(ids, max_new_tokens=8), expected)
            assert last(model) == (0, 80)
        assert refusals("store_timeout") >= before + 3
        hf.detach(model)
