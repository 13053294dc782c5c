"""The example in docs/format/layout.md runs, and prints what it says."""

from __future__ import annotations

import contextlib
import io
import textwrap
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "format" / "layout.md"


def test_the_example_runs() -> None:
    code = textwrap.dedent(PAGE.read_text().split("## In Python\n")[1].split("\n`Buffer.of`")[0])
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(code, str(PAGE), "exec"), {})  # noqa: S102
    assert printed.getvalue().strip() == code.strip().rsplit("# ", 1)[1]
