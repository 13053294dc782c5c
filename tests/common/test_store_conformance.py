"""The shipped conformance suite, run for each store."""

from pathlib import Path

import pytest

from kvlingua.common.errors import ConfigError
from kvlingua.common.stores.conformance import StoreConformance
from kvlingua.common.stores.store import STORES, Store, open_store


class TestFileStore(StoreConformance):
    def open(self, folder: Path, max_bytes: int) -> Store:
        return open_store(f"file://{folder}/store", max_bytes)


class TestMemoryStore(StoreConformance):
    def open(self, folder: Path, max_bytes: int) -> Store:
        return open_store("memory://", max_bytes)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("redis://host", "no store is known"),
        ("store", "no store is known"),
        ("", "no store is known"),
        ("http://[", "no store is known"),
        ("file://host/folder", "file:///absolute/path"),
        ("file:relative", "file:///absolute/path"),
        ("file://", "file:///absolute/path"),
        ("file:///folder?x=1", "file:///absolute/path"),
        ("file:///a%00b", "file:///absolute/path"),
        ("memory://name", "just memory://"),
    ],
)
def test_a_url_that_is_none_is_refused_in_words(url: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        open_store(url, 1)


def test_the_known_stores_are_named() -> None:
    with pytest.raises(ConfigError) as caught:
        open_store("nothing://", 1)
    assert all(kind.sentence in str(caught.value) for kind in STORES.values())


def test_opening_a_folder_touches_nothing(tmp_path: Path) -> None:
    store = open_store(f"file://{tmp_path}/a%20b/store", 1)
    assert store.describe() == f"file://{tmp_path}/a b/store"
    assert store.exists_many(["0" * 64 + "/namespace.json"]) == [False]
    assert list(tmp_path.iterdir()) == []
