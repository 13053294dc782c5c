"""MATRIX.md and MATRIX.html: for each group of cells a table of producers and consumers."""

import html
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matrix.cells import FOLDER, Cell, Group, Rule, read_groups, read_rules, rule_of
from matrix.results import RESULTS, Result, latest

PAGE, HEAT_MAP = FOLDER / "MATRIX.md", FOLDER / "MATRIX.html"
INTRODUCTION = """\
Rendered by `python -m matrix render` from `axes.toml`, `rules.toml` and `results/`; don't edit. A cell is green when a
real consumer process reused exactly what it should of what a real producer process had stored, gave the tokens of its
own cold run (in bfloat16 the first, which is the answer), and both controls failed as they must: KV negated under valid
checksums changes them, a damaged object is refused and computed anew. A cell that nobody ran says untested. `make
matrix` runs them ([README.md](README.md)).
"""
SIGNS = {"green": "ok", "red": "RED", "untested": "?", "unsupported": "-", "compiled, not run": "c"}
COLOURS = {
    "green": "#2e9e5b",
    "red": "#d03b3b",
    "untested": "#e8e8e4",
    "unsupported": "#bdbdb8",
    "compiled, not run": "#9db7d9",
}


@dataclass(frozen=True)
class Verdict:
    """word: one of SIGNS. detail: why, or what was measured."""

    word: str
    detail: str


def verdict(cell: Cell, rules: Sequence[Rule], results: Mapping[Cell, Result]) -> Verdict:
    rule = rule_of(cell, rules)
    if rule is not None:
        return Verdict(rule.verdict, rule.reason)
    result = results.get(cell)
    if result is None:
        return Verdict("untested", "nobody ran it")
    return Verdict(result.verdict, f"{result.detail}; {result.date}, {result.commit}, {result.hardware}")


def render(groups: Sequence[Group], rules: Sequence[Rule], results: Mapping[Cell, Result]) -> str:
    """MATRIX.md."""
    page = ["# What was reused by whom\n", INTRODUCTION]
    page.append(f"{', '.join(f'`{sign}` {word}' for word, sign in SIGNS.items())}\n")
    page.append("| group | " + " | ".join(SIGNS) + " |")
    page.append("|---" * (len(SIGNS) + 1) + "|")
    for group in groups:
        counted = Counter(verdict(cell, rules, results).word for cell in group.cells())
        page.append(f"| {group.title} | " + " | ".join(str(counted[word]) for word in SIGNS) + " |")
    page.append("")
    for group in groups:
        page.append(f"## {group.title}\n")
        page.append("| producer \\ consumer | " + " | ".join(side.label for side in group.sides) + " |")
        page.append("|---" * (len(group.sides) + 1) + "|")
        for producer in group.sides:
            row = [verdict(group.cell(producer, consumer), rules, results) for consumer in group.sides]
            page.append(f"| {producer.label} | " + " | ".join(SIGNS[one.word] for one in row) + " |")
        page.append("")
        ran = [results[cell] for cell in group.cells() if cell in results and rule_of(cell, rules) is None]
        page += _runs(ran)
        found = [rule for cell in group.cells() if (rule := rule_of(cell, rules)) is not None]
        reasons = Counter((rule.verdict, rule.reason) for rule in found)
        page += [f"- {count} cells, {word}: {reason}" for (word, reason), count in sorted(reasons.items())]
        page += [f"- RED {result.cell}: {result.detail}" for result in ran if result.verdict == "red"]
        page.append("")
    return "\n".join(page).rstrip("\n") + "\n"


def render_html(groups: Sequence[Group], rules: Sequence[Rule], results: Mapping[Cell, Result]) -> str:
    """MATRIX.html: the same as a heat map, of one file."""
    parts = [HEAD, "<h1>What was reused by whom</h1>"]
    legend = (f'<span class="k" style="background:{COLOURS[word]}"></span>{word}' for word in SIGNS)
    parts.append(f"<p>Rows store, columns reuse. Point at a cell for what was measured.</p><p>{' '.join(legend)}</p>")
    for group in groups:
        parts.append(f"<h2>{html.escape(group.title)}</h2><table><tr><td></td>")
        parts += [f'<th class="c"><div>{html.escape(side.label)}</div></th>' for side in group.sides]
        parts.append("</tr>")
        for producer in group.sides:
            parts.append(f"<tr><th>{html.escape(producer.label)}</th>")
            for consumer in group.sides:
                one = verdict(group.cell(producer, consumer), rules, results)
                title = html.escape(f"{producer.label} -> {consumer.label}: {one.word}. {one.detail}", quote=True)
                parts.append(f'<td style="background:{COLOURS[one.word]}" title="{title}">{SIGNS[one.word]}</td>')
            parts.append("</tr>")
        parts.append("</table>")
    return "\n".join([*parts, "</body></html>"]) + "\n"


HEAD = """<!doctype html><html lang="en"><head><meta charset="utf-8">
<title>kvlingua: what was reused by whom</title><style>
body{font:14px/1.4 system-ui,sans-serif;margin:2em;color:#222}table{border-collapse:separate;border-spacing:2px}
th{font-weight:400;text-align:right;padding-right:.5em;white-space:nowrap}
th.c{height:11em;vertical-align:bottom;padding:0}
th.c div{writing-mode:vertical-rl;transform:rotate(180deg);text-align:left}
td{min-width:2.2em;height:1.7em;text-align:center;color:#fff;font-size:11px;border-radius:2px}
.k{display:inline-block;width:1em;height:1em;border-radius:2px;margin:0 .4em 0 1em;vertical-align:-.1em}
</style></head><body>"""


def _runs(ran: Sequence[Result]) -> list[str]:
    """A line for each commit and hardware of the last runs."""
    counted = Counter((result.date, result.commit, result.hardware) for result in ran)
    return [
        f"- {count} cells run {date}, {commit}, {hardware}"
        for (date, commit, hardware), count in sorted(counted.items())
    ]


def pages(results: Path = RESULTS) -> dict[Path, str]:
    """What the files should hold."""
    groups, found = read_groups(), latest(results)
    rules = read_rules(groups)
    return {PAGE: render(groups, rules, found), HEAT_MAP: render_html(groups, rules, found)}


def write_pages() -> None:
    for path, text in pages().items():
        temporary = path.with_suffix(".tmp")
        temporary.write_text(text)
        temporary.replace(path)
