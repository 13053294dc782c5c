"""The demo's result as a table of text."""

from collections.abc import Sequence

from demo.job import Row

COLUMNS = ("engine", "prompt", "reused", "computed", "TTFT cold", "TTFT warm", "answer", "expected")


def seconds(value: float | None) -> str:
    return "-" if value is None else f"{value * 1000:.0f} ms"


def table(rows: Sequence[Row]) -> str:
    """One line an engine, columns aligned: numbers to the right, words to the left."""
    cells = [COLUMNS] + [
        (
            f"{row.engine} {row.version}",
            str(row.prompt),
            str(row.reused),
            str(row.computed),
            seconds(row.cold_s),
            seconds(row.warm_s),
            row.answer,
            row.expected,
        )
        for row in rows
    ]
    widths = [max(len(line[column]) for line in cells) for column in range(len(COLUMNS))]
    words = {0, 6, 7}

    def line(values: Sequence[str]) -> str:
        aligned = (
            v.ljust(w) if i in words else v.rjust(w) for i, (v, w) in enumerate(zip(values, widths, strict=True))
        )
        return "  ".join(aligned).rstrip()

    return "\n".join(
        [line(cells[0]), "  ".join("-" * width for width in widths), *(line(values) for values in cells[1:])]
    )
