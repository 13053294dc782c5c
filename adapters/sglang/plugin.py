"""The entry point: SGLang calls `register` in every process, before it reads its arguments.

python -m sglang.launch_server --model-path MODEL --radix-cache-backend kvlingua
"""

from typing import Any

from kvlingua.adapters.sglang.building import keep

BACKEND = "kvlingua"


def register() -> None:
    """Make `--radix-cache-backend kvlingua` known, and `building.context`, without which `linker` is off.

    May be called again; loads nothing else of kvlingua.
    """
    try:
        from sglang.srt.mem_cache.registry import get_radix_cache_factory, register_radix_cache_backend
        from sglang.srt.plugins.hook_registry import HookRegistry, HookType
    except ModuleNotFoundError:  # an SGLang from before the registry: it has no flag to select us with either
        return
    if get_radix_cache_factory(BACKEND) is None:
        register_radix_cache_backend(BACKEND, build_tree)
        HookRegistry.register("sglang.srt.mem_cache.registry.create_tree_cache", keep, HookType.AROUND)


def build_tree(context: Any) -> Any:
    """The factory that SGLang calls in its scheduler process after loading the weights, with a TreeCacheBuildContext.

    Returns SGLang's own choice where kvlingua is off, so that the engine runs as if the flag weren't there.
    """
    from sglang.srt.mem_cache.registry import default_radix_cache_factory

    from kvlingua.adapters.sglang.link import Link
    from kvlingua.adapters.sglang.start import connect
    from kvlingua.adapters.sglang.views import describe_pool

    link = connect(context, Link, describe_pool)
    if link is None:
        return default_radix_cache_factory(context)

    from kvlingua.adapters.sglang import releases
    from kvlingua.adapters.sglang.radix_cache import KVLinguaRadixCache
    from kvlingua.adapters.sglang.waiting import Waiting

    cache = releases.build_tree(context, KVLinguaRadixCache)
    waiting = Waiting(link, cache.token_to_kv_pool_allocator.free)
    cache.link, cache.waiting, link.step = link, waiting, waiting.step
    link.start()
    return cache
