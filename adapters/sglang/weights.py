"""Notices when a running SGLang changes its weights: by SGLang's plug-in hooks on everything that does so.

The radix cache can't tell: an update shows there as a reset, like /flush_cache does, or, with flush_cache=False, not
at all.
"""

from collections.abc import Callable

from kvlingua.adapters.sglang.hooks import install
from kvlingua.adapters.sglang.releases import WEIGHT_WRITERS


def watch(changed: Callable[[str, str], None]) -> None:
    """Call `changed`, which must not raise, with a code and a sentence before the weights are written.

    Must run before SGLang's scheduler takes requests. Raises UnsupportedError if one of the places can't be watched.
    """
    install({target: _hook(changed, target.rpartition(".")[2]) for target in WEIGHT_WRITERS}, "BEFORE")


def _hook(changed: Callable[[str, str], None], name: str) -> Callable[..., None]:
    def hook(*args: object, **kwargs: object) -> None:
        message = f"SGLang's weights were changed while it ran ({name}); restart it to share KV again"
        changed("weights", message)

    return hook
