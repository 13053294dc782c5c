"""Which store a command means: the configured one, a URL, or a path."""

import argparse
from pathlib import Path
from urllib.parse import unquote, urlsplit

from kvlingua.common.config import Config
from kvlingua.common.errors import ConfigError
from kvlingua.common.stores.store import Store, open_store


def add_target(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "target", nargs="?", metavar="PATH|URL", help="a folder or a store's URL (default: as configured)"
    )


def store_url(target: str | None) -> str:
    """The URL of a store that is there. Raises ConfigError for a folder that isn't: looking must not create one."""
    url = target or Config.resolve().url
    if "://" not in url:
        url = Path(url).expanduser().resolve().as_uri()
    parts = urlsplit(url)
    if parts.scheme == "file" and not Path(unquote(parts.path)).is_dir():
        raise ConfigError(f"there is no store at {url}: expected a folder that an engine with kvlingua has written")
    return url


def existing_store(target: str | None) -> Store:
    return open_store(store_url(target), Config.resolve().max_bytes)
