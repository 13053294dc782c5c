"""Groups, cells, rules, results, what is left to run, and the pages rendered from them."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from matrix import run as running
from matrix.cells import Cell, Group, Rule, Side, read_groups, read_rules, rule_of
from matrix.pairing import Outcome, engine_of
from matrix.render import HEAT_MAP, PAGE, pages, render, render_html, verdict
from matrix.results import append, latest
from matrix.texts import KINDS, Text

HF, VLLM, SGLANG = Side("hf", "5.23", 1, 1), Side("vllm", "0.32.0", 64, 1), Side("sglang", "0.5.23", 16, 2)
GROUP = Group("llama", "float32", "cpu", (HF, VLLM))
CELL = GROUP.cell(HF, VLLM)


def test_the_projects_axes_have_every_engine_and_both_sizes() -> None:
    groups = read_groups()
    rules = read_rules(groups)
    runnable = [cell for group in groups for cell in group.cells() if rule_of(cell, rules) is None]
    assert len(set(runnable)) == len(runnable) >= 150
    for producer in ("hf", "vllm", "sglang"):
        for consumer in ("hf", "vllm", "sglang"):
            assert any((cell.producer.engine, cell.consumer.engine) == (producer, consumer) for cell in runnable)
    for sizes in ((1, 2), (2, 1), (2, 2)):
        assert any((cell.producer.tp, cell.consumer.tp) == sizes for cell in runnable)


def test_a_side_is_called_by_what_tells_it_from_others() -> None:
    assert [side.label for side in (HF, VLLM, SGLANG)] == [
        "hf 5.23",
        "vllm 0.32.0, page 64",
        "sglang 0.5.23, page 16, TP 2",
    ]
    assert engine_of(VLLM) == "vllm"
    assert engine_of(Side("vllm", "0.31.0", 64, 1)) == "vllm==0.31.0"


def test_a_cell_nobody_ran_says_untested() -> None:
    assert verdict(CELL, [], {}).word == "untested"
    assert "| hf 5.23 | ? | ? |" in render([GROUP], [], {})


def test_the_last_result_counts_and_appending_keeps_the_earlier_ones(tmp_path: Path) -> None:
    path = tmp_path / "cells.jsonl"
    append(CELL, "red", {"vllm": "0.32.0"}, "3 of 9", path)
    append(CELL, "green", {"vllm": "0.32.0"}, "9 of 9", path)
    results = latest(tmp_path)
    assert len(path.read_text().splitlines()) == 2
    assert results[CELL].verdict == "green"
    assert "| hf 5.23 | ? | ok |" in render([GROUP], [], results)
    assert "9 of 9" in render_html([GROUP], [], results)


def test_a_rule_gives_its_verdict_in_place_of_a_measured_one(tmp_path: Path) -> None:
    append(CELL, "green", {}, "9 of 9", tmp_path / "cells.jsonl")
    rules = [Rule({"consumer.engine": "vllm", "page": 64}, "unsupported", "no such backend")]
    assert rule_of(CELL, rules) == rules[0]
    assert rule_of(GROUP.cell(VLLM, HF), rules) is None
    assert rule_of(GROUP.cell(VLLM, HF), [Rule({"page": 64}, "unsupported", "either side")]) is not None
    page = render([GROUP], rules, latest(tmp_path))
    assert "| hf 5.23 | ? | - |" in page
    assert "2 cells, unsupported: no such backend" in page


@pytest.mark.parametrize("text", ['when = { engine = "trt" }', 'when = { flavour = "x" }', "when = {}"])
def test_a_rule_that_could_match_nothing_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "rules.toml"
    path.write_text(f'[[rule]]\nverdict = "unsupported"\nreason = "not here"\n{text}\n')
    with pytest.raises(ValueError, match=r"rules\.toml"):
        read_rules([GROUP], path)


@pytest.mark.parametrize("line", ['{"cell": {"producer": "hf"}}', "[]", "x", '{"cell": {}}'])
def test_a_spoiled_result_line_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "cells.jsonl").write_text(f"{line}\n")
    with pytest.raises(ValueError, match=r"cells\.jsonl:1"):
        latest(tmp_path)


def test_what_is_green_with_these_sources_is_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "cells.jsonl"

    def left(pattern: str = "*") -> list[Cell]:
        return running.wanted([GROUP], [], pattern, latest(tmp_path))

    assert left() == list(GROUP.cells())
    append(CELL, "red", {}, "", path)
    assert CELL in left()
    append(CELL, "green", {}, "", path)
    assert sorted(left()) == sorted(set(GROUP.cells()) - {CELL})
    assert left("vllm*-> hf") == [GROUP.cell(VLLM, HF)]
    assert running.wanted([Group("llama", "float32", "nvidia", (HF,))], [], "*", {}) == []
    monkeypatch.setattr(running, "tree_digest", lambda: "other")
    assert CELL in left()


def test_one_side_that_fails_reddens_its_own_cells_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The engines are left out: what is recorded when some don't come to their end."""

    def produce(side: Side, *_: object) -> tuple[Path, str]:
        if side == VLLM:
            raise RuntimeError("it died")
        return tmp_path, "1"

    def consume(side: Side, *arguments: object) -> tuple[dict[Side, Outcome], str]:
        stores = arguments[-1]
        assert isinstance(stores, Mapping)
        return {producer: Outcome([] if side == HF else ["tokens changed"], "9 of 9") for producer in stores}, "2"

    recorded: dict[Cell, str] = {}
    monkeypatch.setattr(running, "produce", produce)
    monkeypatch.setattr(running, "consume", consume)
    red = running.run(
        [GROUP], list(GROUP.cells()), lambda line: None, lambda cell, word, *_: recorded.update({cell: word})
    )
    assert recorded == {cell: "green" if cell == GROUP.cell(HF, HF) else "red" for cell in GROUP.cells()}
    assert len(red) == 3


def test_every_side_reads_texts_of_its_own() -> None:
    sides = {side for group in read_groups() for side in group.sides}
    texts = [Text.of(side, kind) for side in sides for kind in KINDS]
    assert len({text.document.ids for text in texts}) == len(texts)
    assert all(len(text.shared()) >= 4 for text in texts)


def test_the_committed_pages_are_what_the_committed_results_give() -> None:
    for path, text in pages().items():
        assert path.read_text() == text, f"{path.name} is stale: run `python -m matrix render`"
    assert {PAGE, HEAT_MAP} == set(pages())


def test_the_committed_results_have_green_cells_and_no_red_one() -> None:
    groups = read_groups()
    rules, results = read_rules(groups), latest()
    words = [verdict(cell, rules, results).word for group in groups for cell in group.cells()]
    assert words.count("green") >= 150
    assert "red" not in words
