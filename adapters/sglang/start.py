"""Switches kvlingua on in a scheduler process, or says in one line why it stays off."""

import logging
from typing import Any, TypeAlias

from kvlingua.adapters.sglang.admission import watch_admission
from kvlingua.adapters.sglang.identity import describe
from kvlingua.adapters.sglang.link import Link
from kvlingua.adapters.sglang.ranks import Ranks
from kvlingua.adapters.sglang.views import describe_pool
from kvlingua.adapters.sglang.weights import watch
from kvlingua.common import log
from kvlingua.common.activation import say_off
from kvlingua.common.cache import KVCache
from kvlingua.common.config import Config
from kvlingua.common.errors import KVLinguaError
from kvlingua.common.guard import Guard, reason_of
from kvlingua.common.identity.extents import ShardGrid

ADAPTER = "sglang"
WhyNot: TypeAlias = tuple[str, str]  # a code for metrics, and a sentence
UNEXPECTED = "start", "an unexpected error at start, see the line before"


def connect(context: Any) -> Link | None:
    """The link for a TreeCacheBuildContext; None, with one line in the log, if something isn't proved to fit.

    All ranks of an engine come here, and all or none of them get a link.
    """
    _show_lines()
    guard = Guard(ADAPTER)
    ranks = guard.run("start", None, Ranks.of, context)
    config: Config | WhyNot = guard.run("start", UNEXPECTED, _configure)
    link: Link | WhyNot = UNEXPECTED
    if isinstance(config, Config) and ranks is not None:
        link = guard.run("start", UNEXPECTED, _connect, context, config, guard, ranks)
    elif not isinstance(config, Config):
        link = config
    if ranks is not None and not ranks.same(link.settings if isinstance(link, Link) else None):
        if isinstance(link, Link):
            link = "ranks", "another rank of this engine is off, or has other settings: see its lines"
        elif ranks.rank > 0:
            log.logger.warning("rank %d is off: %s", ranks.rank, link[1])
    if isinstance(link, Link):
        return link
    if context.tp_rank == 0:  # once, whatever the number of ranks
        say_off(ADAPTER, *link, metrics_dir=config.metrics_dir if isinstance(config, Config) else None)
    return None


def _configure() -> Config | WhyNot:
    try:
        config = Config.resolve()
    except KVLinguaError as error:
        return reason_of(error), str(error)
    log.ensure_visible(config.log_level)
    return config


def _connect(context: Any, config: Config, guard: Guard, ranks: Ranks) -> Link | WhyNot:
    try:
        description = describe(context)
        geometry, extent = description.geometry, ranks.extent(description.geometry)
        ShardGrid.of(geometry, config.layers_per_shard).check_writer(extent)
        kv = context.params.token_to_kv_pool_allocator.get_kvcache()
        pool = describe_pool(kv, geometry, context.params.page_size, extent)
        link = Link(KVCache.open(config), description, pool, guard, ranks)
        watch(link.switch_off)
        watch_admission(link, guard)
    except KVLinguaError as error:
        return reason_of(error), str(error)
    return link


class _Named(logging.Filter):
    """SGLang's handlers show a line's message alone: put our name and the level before it, as our own handler does."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg = f"kvlingua: {record.levelname}: {record.msg}"
        return True


def _show_lines() -> None:
    log.ensure_visible("info")
    if not log.logger.handlers and not log.logger.filters:
        log.logger.addFilter(_Named())
