"""What SGLang builds its prefix cache from. To a linker or a storage backend of HiCache it hands less of it."""

from collections.abc import Callable
from typing import Any

context: Any = None
"""SGLang's TreeCacheBuildContext, in a scheduler process, while it builds its prefix cache."""

_built = False


def keep(build: Callable[..., Any], given: Any, *args: Any, **kwargs: Any) -> Any:
    """A hook around SGLang's create_tree_cache."""
    global context, _built
    context = given
    try:
        return build(given, *args, **kwargs)
    finally:
        context, _built = None, True


def why_none() -> tuple[str, str]:
    """Why there is no context: a code for metrics, and a sentence."""
    if _built:
        # Until now nobody has watched whether the weights were changed.
        return "attached", "attached to an SGLang that runs, whose weights may be others by now: start SGLang with it"
    return "plugin", "SGLang didn't load kvlingua's plug-in: SGLANG_PLUGINS names others only"
