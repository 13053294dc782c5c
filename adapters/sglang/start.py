"""Switches kvlingua on in a scheduler process, or says in one line why it stays off."""

import logging
from typing import Any, TypeAlias

from kvlingua.adapters.sglang.identity import describe
from kvlingua.adapters.sglang.link import Link
from kvlingua.adapters.sglang.views import describe_pool
from kvlingua.adapters.sglang.weights import watch
from kvlingua.common import log
from kvlingua.common.activation import say_off
from kvlingua.common.cache import KVCache
from kvlingua.common.config import Config
from kvlingua.common.errors import KVLinguaError
from kvlingua.common.guard import Guard, reason_of

ADAPTER = "sglang"
WhyNot: TypeAlias = tuple[str, str]  # a code for metrics, and a sentence
UNEXPECTED = "start", "an unexpected error at start, see the line before"


def connect(context: Any) -> Link | None:
    """The link for a TreeCacheBuildContext; None, with one line in the log, if something isn't proved to fit."""
    _show_lines()
    guard = Guard(ADAPTER)
    config: Config | WhyNot = guard.run("start", UNEXPECTED, _configure)
    if isinstance(config, Config):
        link: Link | WhyNot = guard.run("start", UNEXPECTED, _connect, context, config, guard)
        if isinstance(link, Link):
            link.start()
            return link
        why_not, metrics_dir = link, config.metrics_dir
    else:
        why_not, metrics_dir = config, None
    if context.tp_rank == 0:  # once, whatever the number of ranks
        say_off(ADAPTER, *why_not, metrics_dir=metrics_dir)
    return None


def _configure() -> Config | WhyNot:
    try:
        config = Config.resolve()
    except KVLinguaError as error:
        return reason_of(error), str(error)
    log.ensure_visible(config.log_level)
    return config


def _connect(context: Any, config: Config, guard: Guard) -> Link | WhyNot:
    try:
        description = describe(context)
        kv = context.params.token_to_kv_pool_allocator.get_kvcache()
        pool = describe_pool(kv, description.geometry, context.params.page_size)
        link = Link(KVCache.open(config), description, pool, guard)
        watch(link.switch_off)
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
