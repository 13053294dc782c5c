"""What SGLang builds its prefix cache from. To a linker or a storage backend of HiCache it hands less of it."""

from typing import Any

context: Any = None
"""SGLang's TreeCacheBuildContext, in a scheduler process."""


def keep(given: Any, *args: Any, **kwargs: Any) -> None:
    """A hook before SGLang's create_tree_cache."""
    global context
    context = given
