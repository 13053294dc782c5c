"""What only the addresses and block tables of one conversion can tell: whether it reads and writes the right places.

The native library checks the same by itself and answers with a code; this says which block and which address.
"""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

from kvlingua.layouts.casts import Op
from kvlingua.layouts.errors import LayoutError
from kvlingua.layouts.memory import joined
from kvlingua.layouts.plan import Plan
from kvlingua.layouts.view import Pool, View


def check(plan: Plan) -> None:
    """Raise LayoutError if a block table is wrong, or source and target overlap."""
    _check_table("source", plan.source)
    _check_table("target", plan.target)
    twice = [block for block, count in Counter(plan.target.blocks).items() if count > 1]
    if twice:
        raise LayoutError(
            f"the target's block table names block {twice[0]} twice: later tokens would overwrite earlier ones"
        )
    _check_apart(plan.source.pool, plan.target.pool)


def static_scales_differ(planes: str) -> LayoutError:
    """The refusal of `Op.COPY_EQUAL`; `planes` hold the target's scales."""
    return LayoutError(
        f"the target's static scales ({planes}) differ from those that the numbers have: convert with"
        " allow_lossy=True to have the numbers scaled anew"
    )


def values_differ(planes: str) -> LayoutError:
    """The refusal of planes with one value per block where several values meet in one block."""
    return LayoutError(f"{planes}: there is one value per block, but the source's blocks that meet in one differ in it")


def scales_error(plan: Plan) -> LayoutError:
    """Which of the two it is where a backend only says that scales are to blame."""
    steps = plan.recipe.conversions
    static = [step.target_scale.name for step in steps if step.op is Op.COPY_EQUAL and step.target_scale]
    if static:
        return static_scales_differ(", ".join(static))
    return values_differ(", ".join(step.target.name for step in steps if step.once))


def _check_table(name: str, view: View) -> None:
    for block in view.blocks:
        if not 0 <= block < view.pool.blocks:
            raise LayoutError(
                f"the {name}'s block table names block {block}; the pool has blocks 0 to {view.pool.blocks - 1}"
            )


def _check_apart(source: Pool, target: Pool) -> None:
    read, written = _reached(source, frozenset()), _reached(target, target.fixed)
    ranges = sorted([(*span, "source") for span in read] + [(*span, "target") for span in written])
    for (_, end, one), (begin, _, other) in pairwise(ranges):
        if begin < end and one != other:
            raise LayoutError(f"source and target overlap in memory, from address {begin:#x} on")


def _reached(pool: Pool, but: frozenset[str]) -> list[tuple[int, int]]:
    """Address ranges that hold every element of the pool."""
    return joined(
        (base, base + strides.reach)
        for strides, plane in zip(pool.arrangement.planes, pool.planes, strict=True)
        if plane.name not in but
        for base in plane.bases
    )
