"""One call of `generate` that is understood: what was found of its rows, its cache, what is stored after."""

from collections.abc import Iterator
from typing import Any

import torch
from transformers.cache_utils import Cache

from kvlingua.adapters.hf import pasts
from kvlingua.adapters.hf.forward_counter import Count
from kvlingua.adapters.hf.request import Request
from kvlingua.adapters.hf.views import empty_layers, row_pool
from kvlingua.common.cache import Hit, KVCache
from kvlingua.common.errors import UnsupportedError
from kvlingua.common.identity.namespace import Namespace
from kvlingua.common.prefix import reusable_tokens

PAGE = 1  # a cache of transformers' may begin and end anywhere


class Generation:
    """past: the cache that `generate` is given. hits: what is stored of each row of the batch. reused: columns of the
    batch that `past` holds before the first forward."""

    def __init__(self, model: Any, cache: KVCache, namespace: Namespace, request: Request) -> None:
        self.namespace = namespace
        self.request = request
        self.hits: tuple[Hit, ...] = ()
        self.reused = 0
        self.past: Cache
        self._model = model
        self._cache = cache
        self._failed = False
        if request.past is not None:
            pasts.check_empty(request.past, model, namespace.layers)

    def look_up(self) -> int:
        """Look all rows up, and make the cache. How many columns every row has, padding included; 0 if there is
        nothing to load."""
        request = self.request
        self.hits = tuple(self._cache.lookup(self.namespace, row) for row in request.rows)
        columns = min(
            pad + reusable_tokens(hit.tokens, len(row), PAGE)
            for pad, row, hit in zip(request.pads, request.rows, self.hits, strict=True)
        )
        self.past = self._empty_past()  # last: from here on a caller's cache isn't as it was
        return columns if columns > min(request.pads) else 0

    def load(self, columns: int) -> None:
        """Fill the cache with the first `columns` columns of every row."""
        request = self.request
        layers = empty_layers(self.namespace, len(request.rows), columns)
        for row, (pad, hit) in enumerate(zip(request.pads, self.hits, strict=True)):
            if pad < columns:
                view = row_pool(self.namespace, layers, row).view([0], pad, columns)
                self._cache.load(hit, view, 0, columns - pad)
        pasts.fill(self.past, layers, self._model.device, request.repeats)
        self.reused = columns

    def give_up(self) -> None:
        """After a load that failed: `generate` gets an empty cache, and what is stored, damaged or gone, counts as
        not being there."""
        self._failed = True
        self.reused = 0
        if self.request.past is not None:
            self.past.reset()
        self.past = self._empty_past()

    def store(self, count: Count) -> None:
        """Store the whole chunks of each row, generated tokens included, that the store didn't hold.

        Raises UnsupportedError if what was fed isn't what the prompt says, LayoutError if the cache isn't as wide.
        """
        request, chunk_tokens = self.request, self.namespace.chunk_tokens
        if self.reused + count.computed != request.width:
            raise UnsupportedError(
                "prompt_width", f"the model was given {count.computed} columns, not {request.width - self.reused}"
            )
        pending = [
            (row, start, tokens) for row, start, tokens in self._rows(count) if start + chunk_tokens <= len(tokens)
        ]
        if not pending:
            return
        layers = pasts.held(self.past, max(self._pad(row) + len(tokens) for row, _, tokens in pending))
        for row, start, tokens in pending:
            pad = self._pad(row)
            view = row_pool(self.namespace, layers, row).view([0], pad + start, pad + len(tokens))
            self._cache.store(self.namespace, tokens, view, start, len(tokens))

    def _rows(self, count: Count) -> Iterator[tuple[int, int, list[int]]]:
        """Rows of the cache with the tokens whose KV they provably hold, and how many of these needn't be stored.

        Those of the prompt are held by the first of the rows that a row of the batch takes, also where beams have
        changed places. Those that were generated are what the model was fed with, if every forward was seen.
        """
        request, chunk_tokens = self.request, self.namespace.chunk_tokens
        fed = self._fed(count)
        for number, (pad, prompt, hit) in enumerate(zip(request.pads, request.rows, self.hits, strict=True)):
            held = 0 if self._failed else hit.tokens
            for copy in range(request.repeats):
                row = number * request.repeats + copy
                tokens = prompt if fed is None else self._without_end(fed[row][pad:], len(prompt))
                yield row, held, tokens
                if fed is None:
                    break
                held = max(held, len(prompt) - len(prompt) % chunk_tokens)  # the first one's are stored already

    def _fed(self, count: Count) -> list[list[int]] | None:
        """The token ids of all columns of the cache, row by row; None where it can't be said.

        Raises UnsupportedError if the model was fed with something else than the prompt.
        """
        request = self.request
        rows = len(request.rows) * request.repeats
        if any(ids.shape[0] != rows for ids in count.ids):
            raise UnsupportedError("rows", f"the model was given other than {rows} rows")
        pads = torch.tensor(request.pads).repeat_interleave(request.repeats)[:, None]
        prompt = [[0] * pad + row for pad, row in zip(request.pads, request.rows, strict=True)]
        expected = torch.tensor(prompt).repeat_interleave(request.repeats, dim=0)
        ids = torch.cat([expected[:, : self.reused], *(each.cpu() for each in count.ids)], 1)
        real = torch.arange(request.width) >= pads
        if not torch.equal(ids[:, : request.width] * real, expected):
            raise UnsupportedError("prompt", "the model was given other tokens than the prompt's")
        if request.beams or ids.shape[1] != count.columns or pasts.columns_of(self.past) != count.columns:
            return None
        column = self.reused
        for each in count.positions:
            if each is None:
                return None
            wanted = torch.arange(column, column + each.shape[-1]) - pads
            if each.dim() != 2 or not torch.equal(torch.where(wanted < 0, wanted, each.cpu()), wanted.expand(rows, -1)):
                return None
            column += each.shape[-1]
        found: list[list[int]] = ids.tolist()
        return found if column == count.columns else None

    def _without_end(self, tokens: list[int], prompt: int) -> list[int]:
        """Without what fills up a row that has ended, but for one token."""
        stop = len(tokens)
        while stop - 1 > prompt and tokens[stop - 1] == tokens[stop - 2] and tokens[stop - 1] in self.request.ending:
            stop -= 1
        return tokens[:stop]

    def _pad(self, row: int) -> int:
        return self.request.pads[row // self.request.repeats]

    def _empty_past(self) -> Cache:
        if self.request.past is not None:
            past = self.request.past
        elif self.request.static is not None:
            past = pasts.static_past(self._model, self.namespace.layers, self.request.static)
        else:
            past = pasts.dynamic_past(self._model, self.namespace.layers)
        if self._cache.config.role != "consumer":
            pasts.record(past)
        return past
