"""SGLang's plug-in hooks, put in place in a running scheduler process, and checked to be there."""

import pkgutil
from collections.abc import Callable, Mapping
from typing import Any

from kvlingua.common.errors import UnsupportedError


def install(hooks: Mapping[str, Callable[..., Any]], kind: str) -> None:
    """Put each hook on the method with its dotted name. kind: BEFORE or AROUND, as SGLang's registry knows them.

    Must run before SGLang's scheduler takes requests. Raises UnsupportedError if a method isn't there or has no hook.
    """
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    before = {target: _method(target) for target in hooks}
    for target, hook in hooks.items():
        HookRegistry.register(target, hook, HookType[kind])
    HookRegistry.apply_hooks()
    for target, method in before.items():
        if _method(target) is method:
            raise UnsupportedError("hooks", f"SGLang's plug-in hooks don't work here: there is none on {target}")


def _method(target: str) -> Any:
    path, _, name = target.rpartition(".")
    try:
        return getattr(pkgutil.resolve_name(path), name)
    except (AttributeError, ImportError) as error:
        raise UnsupportedError("hooks", f"this SGLang has no {target}: {error}") from None
