"""Where files are kept that can be made again."""

from __future__ import annotations

import os
from pathlib import Path


def cache_home() -> Path:
    """The user's cache folder for kvlingua: $XDG_CACHE_HOME/kvlingua or ~/.cache/kvlingua."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kvlingua"
