"""Switches kvlingua on in a scheduler process, or says in one line why it stays off."""

import logging
from typing import Any

from kvlingua.adapters.sglang.identity import describe
from kvlingua.adapters.sglang.link import Link
from kvlingua.adapters.sglang.views import describe_pool
from kvlingua.adapters.sglang.weights import watch
from kvlingua.common import log, metrics
from kvlingua.common.cache import KVCache
from kvlingua.common.config import Config
from kvlingua.common.errors import KVLinguaError
from kvlingua.common.guard import Guard, reason_of

ADAPTER = "sglang"


def connect(context: Any) -> Link | None:
    """The link for a TreeCacheBuildContext; None, with one line in the log, if something isn't proved to fit."""
    _show_lines()
    guard = Guard(ADAPTER)
    outcome = guard.run("start", "an unexpected error at start", _connect, context, guard)
    if isinstance(outcome, Link):
        outcome.start()
        return outcome
    if context.tp_rank == 0:  # once, whatever the number of ranks
        log.logger.warning("off: %s", outcome)
    return None


class _Named(logging.Filter):
    """SGLang's handlers show a line's message alone: put our name and the level before it, as our own handler does."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg = f"kvlingua: {record.levelname}: {record.msg}"
        return True


def _show_lines() -> None:
    log.ensure_visible("info")
    if not log.logger.handlers and not log.logger.filters:
        log.logger.addFilter(_Named())


def _connect(context: Any, guard: Guard) -> Link | str:
    config = None
    try:
        config = Config.resolve()
        log.ensure_visible(config.log_level)
        description = describe(context)
        kv = context.params.token_to_kv_pool_allocator.get_kvcache()
        pool = describe_pool(kv, description.geometry, context.params.page_size)
        link = Link(KVCache.open(config), description, pool, guard)
        watch(link.switch_off)
    except KVLinguaError as error:
        if config is not None and config.metrics_dir is not None:
            metrics.MetricsFile(config.metrics_dir)  # which a cache would have: this one shows what follows
        metrics.refused(ADAPTER, reason_of(error))
        return str(error)
    return link
