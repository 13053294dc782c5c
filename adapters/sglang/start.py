"""Switches kvlingua on in a scheduler process, or says in one line why it stays off."""

import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeAlias, TypeVar

from kvlingua.adapters.sglang import building
from kvlingua.adapters.sglang.adapters import Adapters
from kvlingua.adapters.sglang.admission import watch_admission
from kvlingua.adapters.sglang.connection import Connection
from kvlingua.adapters.sglang.identity import describe
from kvlingua.adapters.sglang.link import Link
from kvlingua.adapters.sglang.ranks import Ranks
from kvlingua.adapters.sglang.weights import watch
from kvlingua.common import log
from kvlingua.common.activation import say_off
from kvlingua.common.cache import KVCache
from kvlingua.common.config import Config
from kvlingua.common.errors import KVLinguaError
from kvlingua.common.guard import Guard, reason_of
from kvlingua.common.identity.extents import ShardGrid
from kvlingua.layouts.geometry import Extent, Geometry
from kvlingua.layouts.view import Pool

C = TypeVar("C", bound=Connection)

ADAPTER = "sglang"
WhyNot: TypeAlias = tuple[str, str]  # a code for metrics, and a sentence
UNEXPECTED = "start", "an unexpected error at start, see the line before"


def connect(
    context: Any,
    kind: type[C],
    describe_kv: Callable[[Any, Geometry, int, Extent], Pool],
    settings: Mapping[str, object] | None = None,
) -> C | None:
    """The connection for a TreeCacheBuildContext; None, with one line in the log, if something isn't proved to fit.

    context: `building.context`, if SGLang doesn't hand it over. describe_kv: of SGLang's KV cache, with the
    model's geometry, SGLang's page and what this rank has of the model.
    settings: of kvlingua's, beside its variables. All ranks of an engine come here, and all or none of them get one.
    """
    _show_lines()
    if context is None:
        say_off(ADAPTER, *building.why_none())
        return None
    guard = Guard(ADAPTER)
    ranks = guard.run("start", None, Ranks.of, context)
    config: Config | WhyNot = guard.run("start", UNEXPECTED, _configure, settings or {})
    made: C | WhyNot = UNEXPECTED
    if isinstance(config, Config) and ranks is not None:
        made = guard.run("start", UNEXPECTED, partial(_connect, context, config, guard, ranks, kind, describe_kv))
    elif not isinstance(config, Config):
        made = config
    if ranks is not None and not ranks.same(made.settings if isinstance(made, Connection) else None):
        if isinstance(made, Connection):
            made = "ranks", "another rank of this engine is off, or has other settings: see its lines"
        elif ranks.rank > 0:
            log.logger.warning("rank %d is off: %s", ranks.rank, made[1])
    if isinstance(made, Connection):
        return made
    if context.tp_rank == 0:  # once, whatever the number of ranks
        say_off(ADAPTER, *made, metrics_dir=config.metrics_dir if isinstance(config, Config) else None)
    return None


def _configure(settings: Mapping[str, object]) -> Config | WhyNot:
    try:
        config = Config.resolve(**settings)
    except KVLinguaError as error:
        return reason_of(error), str(error)
    log.ensure_visible(config.log_level)
    return config


def _connect(
    context: Any,
    config: Config,
    guard: Guard,
    ranks: Ranks,
    kind: type[C],
    describe_kv: Callable[[Any, Geometry, int, Extent], Pool],
) -> C | WhyNot:
    try:
        description, page = describe(context, kind.arguments), context.params.page_size
        kind.check(context.server_args, page, config.chunk_tokens)
        geometry, extent = description.geometry, ranks.extent(description.geometry)
        ShardGrid.of(geometry, config.layers_per_shard).check_writer(extent)
        pool = describe_kv(context.params.token_to_kv_pool_allocator.get_kvcache(), geometry, page, extent)
        made = kind(KVCache.open(config), description, pool, guard, ranks)
        watch(made.switch_off)
        if isinstance(made, Link):
            made.adapters = Adapters.of(context, guard)
            watch_admission(made, guard)
    except KVLinguaError as error:
        return reason_of(error), str(error)
    return made


class _Named(logging.Filter):
    """SGLang's handlers show a line's message alone: put our name and the level before it, as our own handler does."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg = f"kvlingua: {record.levelname}: {record.msg}"
        return True


def _show_lines() -> None:
    log.ensure_visible("info")
    if not log.logger.handlers and not log.logger.filters:
        log.logger.addFilter(_Named())
