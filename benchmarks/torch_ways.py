"""The same transfers as a program would write them with torch alone: the peers every user has."""

from __future__ import annotations

import torch

from benchmarks.baselines import Run
from kvlingua.layouts import View
from kvlingua.layouts.view import PlaneAddress


class TorchWays:
    """Pages of one side, in any order, to or from blocks of the other, which follow each other.

    Both are memories of 2-byte elements in which every layer and plane is a strided [group, part, head, token, dim...]:
    a group is the larger of the two blocks, a part the smaller.
    """

    def __init__(self, pages: View, page_memory: torch.Tensor, rows: View, row_memory: torch.Tensor) -> None:
        self.pool, self.rows = pages.pool, rows.pool
        self.page_memory, self.row_memory = page_memory, row_memory
        self.table = torch.tensor(pages.table)
        self.tokens = pages.tokens
        self.small, self.big = sorted((self.pool.page, self.rows.page))
        self.blocks = len(pages.table)

    def ways(self, *, into_pages: bool) -> dict[str, Run]:
        """Ways by name. Both give the same bytes as a conversion."""
        if self.blocks == 1:  # nothing is selected
            return {"torch naive": lambda: self._straight(into_pages)}
        if into_pages:
            return {"torch index_copy_": self._copy_pages, "torch naive": self._naive_scatter}
        return {"torch index_select": self._select_pages, "torch naive": self._naive_gather}

    def _planes(self) -> list[tuple[PlaneAddress, PlaneAddress, int]]:
        """Each plane of each layer, on both sides."""
        layers = range(self.pool.extent.layers)
        return [(a, b, i) for a, b in zip(self.pool.planes, self.rows.planes, strict=True) for i in layers]

    def _row_view(self, plane: PlaneAddress, other: PlaneAddress, layer: int) -> torch.Tensor:
        start = (plane.bases[layer] - self.row_memory.data_ptr()) // 2
        return self._strided(self.row_memory, start, plane, other, self.rows.page, plane.block)

    def _strided(
        self, memory: torch.Tensor, start: int, plane: PlaneAddress, other: PlaneAddress, page: int, block: int
    ) -> torch.Tensor:
        """[group, part, head, token, dim...] of a side whose blocks of `page` tokens are `block` bytes apart."""
        ((_, token),) = plane.token
        dims = plane.dim
        if len(dims) < len(other.dim):  # split like the other side's
            inner = other.dim[1][0]
            dims = (dims[0][0] // inner, dims[0][1] * inner), (inner, dims[0][1])
        group, part = (block, self.small * token) if page == self.big else (block * (self.big // page), block)
        sizes = self.tokens // self.big, self.big // self.small, self.pool.extent.heads, self.small
        strides = group, part, plane.head, token
        return torch.as_strided(
            memory,
            (*sizes, *(size for size, _ in dims)),
            tuple(stride // 2 for stride in (*strides, *(stride for _, stride in dims))),
            start,
        )

    def _allocations(self) -> list[tuple[torch.Tensor, list[tuple[PlaneAddress, PlaneAddress, int]]]]:
        """Each pool of whole blocks as [block, elements], and what lies in it."""
        found: list[tuple[int, list[tuple[PlaneAddress, PlaneAddress, int]]]] = []
        for plane, other, layer in sorted(self._planes(), key=lambda x: x[0].bases[x[2]]):
            base = plane.bases[layer]
            if not found or base - found[-1][0] >= plane.block:
                found.append((base, []))
            found[-1][1].append((plane, other, layer))
        return [(self._whole_blocks(base, inside[0][0].block), inside) for base, inside in found]

    def _whole_blocks(self, base: int, block: int) -> torch.Tensor:
        first, elements = (base - self.page_memory.data_ptr()) // 2, block // 2
        return self.page_memory[first : first + self.pool.blocks * elements].view(self.pool.blocks, elements)

    def _select_pages(self) -> None:
        for pages, inside in self._allocations():
            scratch = torch.index_select(pages, 0, self.table, out=self._scratch(pages))
            self._move(scratch, pages, inside, into_scratch=False)

    def _copy_pages(self) -> None:
        for pages, inside in self._allocations():
            scratch = self._scratch(pages)
            self._move(scratch, pages, inside, into_scratch=True)
            pages.index_copy_(0, self.table, scratch)

    _kept: torch.Tensor | None = None

    def _scratch(self, pages: torch.Tensor) -> torch.Tensor:
        if self._kept is None or self._kept.shape[1] != pages.shape[1]:
            self._kept = torch.empty(self.blocks, pages.shape[1], dtype=pages.dtype)
        return self._kept

    def _move(
        self,
        scratch: torch.Tensor,
        pages: torch.Tensor,
        inside: list[tuple[PlaneAddress, PlaneAddress, int]],
        *,
        into_scratch: bool,
    ) -> None:
        """Between blocks in order and the rows."""
        for plane, other, layer in inside:
            start = (plane.bases[layer] - pages.data_ptr()) // 2
            ordered = self._strided(scratch.view(-1), start, plane, other, self.pool.page, plane.block)
            rows = self._row_view(other, plane, layer)
            ordered.copy_(rows) if into_scratch else rows.copy_(ordered)

    def _page_view(self, plane: PlaneAddress, other: PlaneAddress, layer: int) -> torch.Tensor:
        """[block, part, head, token, dim...] of the whole pool: what an engine's tensor is, seen in that order."""
        one = self._strided(self.page_memory, 0, plane, other, self.pool.page, plane.block)
        parts = max(1, self.pool.page // self.small)
        start = (plane.bases[layer] - self.page_memory.data_ptr()) // 2
        strides = plane.block // 2, self.small * one.stride(3), *one.stride()[2:]
        return torch.as_strided(self.page_memory, (self.pool.blocks, parts, *one.shape[2:]), strides, start)

    def _naive_gather(self) -> None:
        for plane, other, layer in self._planes():
            rows = self._row_view(other, plane, layer)
            rows.copy_(self._page_view(plane, other, layer)[self.table].view(rows.shape))

    def _naive_scatter(self) -> None:
        for plane, other, layer in self._planes():
            pages = self._page_view(plane, other, layer)
            rows = self._row_view(other, plane, layer).contiguous()
            pages[self.table] = rows.view(self.blocks, *pages.shape[1:])

    def _straight(self, into_pages: bool) -> None:
        for plane, other, layer in self._planes():
            pages, rows = self._page_view(plane, other, layer), self._row_view(other, plane, layer)
            pages.view(rows.shape).copy_(rows) if into_pages else rows.copy_(pages.view(rows.shape))
