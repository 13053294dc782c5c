"""The logger "kvlingua": lines a person sees once, not once per request."""

import logging
import sys
import time

logger = logging.getLogger("kvlingua")

_SEEN_LIMIT = 10_000  # distinct lines remembered; beyond it everything may be said again
_seen: dict[str, float] = {}


def ensure_visible(level: str) -> None:
    """Show our lines of `level` ("debug", "info", "warning", "error") and above.

    Where the process shows log lines already (its root logger has a handler), they go there; otherwise to standard
    error, prefixed with "kvlingua:".
    """
    logger.setLevel(level.upper())
    if not logger.hasHandlers():
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("kvlingua: %(levelname)s: %(message)s"))
        logger.addHandler(handler)
        logger.propagate = False


def once(key: str, level: int, message: str, every_s: float | None = None) -> bool:
    """Log `message` unless something was logged under `key` before, or in the last `every_s` seconds. True if so."""
    now = time.monotonic()
    last = _seen.get(key)
    if last is not None and (every_s is None or now - last < every_s):
        return False
    if len(_seen) >= _SEEN_LIMIT:
        _seen.clear()
    _seen[key] = now  # no lock: at worst two threads say the same
    logger.log(level, "%s", message)
    return True
