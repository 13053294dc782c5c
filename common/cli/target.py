"""Which store a command means: the configured one, a URL, or a path."""

import argparse
import os
from pathlib import Path
from urllib.parse import unquote, urlsplit

from kvlingua.common.config import Config
from kvlingua.common.errors import ConfigError
from kvlingua.common.stores.folder import is_store
from kvlingua.common.stores.store import Store, open_store


class NothingStored(ConfigError):
    """There is no store yet, and nothing in the way of one: an engine makes it when it stores something."""


def add_target(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "target", nargs="?", metavar="PATH|URL", help="a folder or a store's URL (default: as configured)"
    )


def store_url(target: str | None) -> str:
    """The URL of a store that is there. Raises ConfigError for a folder that isn't one: looking must not create it."""
    if target == "":
        raise ConfigError("expected a folder or a store's URL, got an empty one: leave it out for the configured store")
    url = Config.resolve().url if target is None else target
    try:
        if "://" not in url:
            url = Path(url).expanduser().resolve().as_uri()
        parts = urlsplit(url)
    except (RuntimeError, ValueError) as error:  # ~nobody, links in a circle; what no path or URL can hold
        raise ConfigError(f"{url!r} can't be followed to a folder: {error}") from None
    if parts.scheme == "file":
        _check_folder(url, Path(unquote(parts.path)))
    return url


def _check_folder(url: str, folder: Path) -> None:
    expected = "expected a folder that an engine with kvlingua has written"
    if not folder.is_dir():
        error = ConfigError if os.path.lexists(folder) else NothingStored
        raise error(f"there is no store at {url}: {expected}")
    if not is_store(folder):
        raise NothingStored(f"the folder at {url} is no store, it holds other things: {expected}")


def existing_store(target: str | None) -> Store:
    return open_store(store_url(target), Config.resolve().max_bytes)
