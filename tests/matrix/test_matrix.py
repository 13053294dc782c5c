"""Cells, rules, results and the page rendered from them."""

from pathlib import Path

import pytest

from matrix.cells import Cell, Rule, all_cells, read_axes, read_rules, unsupported
from matrix.render import PAGE, render
from matrix.results import append, latest

AXES = {"producer": ["hf", "vllm"], "consumer": ["hf", "vllm"], "dtype": ["float32"]}


def cell(producer: str, consumer: str) -> Cell:
    return Cell.of({"producer": producer, "consumer": consumer, "dtype": "float32"})


def test_the_projects_axes_are_the_nine_pairs() -> None:
    cells = all_cells(read_axes())
    assert len(cells) == 9
    assert {(c["producer"], c["consumer"]) for c in cells} == {
        (producer, consumer) for producer in ("hf", "vllm", "sglang") for consumer in ("hf", "vllm", "sglang")
    }


def test_a_cell_nobody_ran_says_untested() -> None:
    page = render(AXES, [], {})
    assert page.count("untested") == 1 + 4  # the introduction, and the four cells


def test_the_last_result_counts_and_appending_keeps_the_earlier_ones(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    append(cell("hf", "vllm"), "red", {"vllm": "0.32.0"}, "3 of 9", path)
    append(cell("hf", "vllm"), "green", {"vllm": "0.32.0"}, "9 of 9", path)
    results = latest(tmp_path)
    assert len(path.read_text().splitlines()) == 2
    assert results[cell("hf", "vllm")].verdict == "green"
    page = render(AXES, [], results)
    assert "| hf | untested | green |" in page
    assert "9 of 9" in page
    assert "vllm 0.32.0" in page


def test_a_rule_gives_its_reason_in_place_of_a_verdict() -> None:
    rules = [Rule({"consumer": "vllm"}, "no such backend")]
    assert unsupported(cell("hf", "vllm"), rules) == "no such backend"
    assert unsupported(cell("hf", "hf"), rules) is None
    assert "| hf | untested | unsupported: no such backend |" in render(AXES, rules, {})


def test_a_rule_that_could_match_nothing_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rules.toml"
    path.write_text('[[unsupported]]\nwhen = { consumer = "trt" }\nreason = "not here"\n')
    with pytest.raises(ValueError, match="match nothing"):
        read_rules(AXES, path)


def test_a_spoiled_result_line_is_named(tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_text('{"cell": {"producer": "hf"}}\n')
    with pytest.raises(ValueError, match=r"pairs\.jsonl:1"):
        latest(tmp_path)


def test_the_committed_page_is_what_the_committed_results_give() -> None:
    axes = read_axes()
    assert PAGE.read_text() == render(axes, read_rules(axes), latest())
