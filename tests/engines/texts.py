"""Prompts in the language of the demo's model, and what of them is reused."""

from pathlib import Path
from typing import Any

from demo.documents import make_document
from engines.drivers.protocol import Ask
from kvlingua.common.identity.chain import chain_digests
from kvlingua.common.prefix import reusable_tokens

CHUNK = 64


def text(seed: int, tokens: int = 500, question: int = 0, max_tokens: int = 8, **more: Any) -> Ask:
    """A document of about that many tokens and one of its questions."""
    document = make_document(seed=seed, length=tokens, questions=3)
    return Ask(document.prompt(document.questions[question]), max_tokens=max_tokens, **more)


def chunks(*asks: Ask) -> int:
    """How many whole chunks the prompts have."""
    return sum(len(ask.prompt) // CHUNK for ask in asks)


def whole(*asks: Ask) -> int:
    """How many whole chunks prompt and answer have; the last token has no KV."""
    return sum((len(ask.prompt) + ask.max_tokens - 1) // CHUNK for ask in asks)


def taken(page: int, *asks: Ask) -> int:
    """How many tokens DESIGN says are reused of prompts that were stored."""
    return sum(reusable_tokens(chunks(ask) * CHUNK, len(ask.prompt), page) for ask in asks)


def length(*asks: Ask) -> int:
    return sum(len(ask.prompt) for ask in asks)


def objects_of(store: Path, ask: Ask) -> list[Path]:
    """The files of a prompt's chunks, in their order."""
    return [next(store.glob(f"*/{digest.hex()}-*.safetensors")) for digest in chain_digests(ask.prompt, CHUNK)]
