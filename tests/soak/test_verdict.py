"""The soak's own judgement: what leaks, fails or never happened is a violation, and a sound run is none."""

import random
from dataclasses import replace
from pathlib import Path

import pytest

from tests.soak.report import MUST_HAPPEN, Report
from tests.soak.watch import MEMORY_MIB_PER_MINUTE, Sample, Trend, trend

SOUND = Report(
    seed=0,
    minutes=15,
    servers=["vllm-1"],
    engines={"vllm": "1"},
    counts={"wrong": 0, "failed": 0, "stuck": 0, "max_disk": 900, **dict.fromkeys([*MUST_HAPPEN, "hits_vllm-1"], 5.0)},
    max_bytes=1000,
    trends=[Trend("vllm-1", 1, 300.0, 700.0, 0.1, 0.0)],
)


def samples(mib_per_minute: float, descriptors_per_minute: float = 0.0) -> list[Sample]:
    """Five minutes; the allocator moves by a few MiB, and once by many."""
    rng = random.Random(0)
    return [
        Sample(
            second,
            700 + mib_per_minute * second / 60 + rng.uniform(-4, 4) + (60 if second == 200 else 0),
            round(40 + descriptors_per_minute * second / 60 + rng.randrange(4)),
        )
        for second in range(0, 300, 2)
    ]


@pytest.mark.parametrize(
    ("mib", "descriptors", "flat"), [(0, 0, True), (1, 0, True), (15, 0, False), (0, 6, False), (-20, -6, True)]
)
def test_what_rises_is_not_flat(mib: float, descriptors: float, flat: bool) -> None:
    found = trend("sglang", 1, samples(mib, descriptors))
    assert found.flat == flat
    assert found.mib_per_minute == pytest.approx(mib, abs=1)


def test_a_sound_run_has_no_violation(tmp_path: Path) -> None:
    assert SOUND.violations() == []
    assert "no violation" in SOUND.text()
    SOUND.write(tmp_path / "results" / "soak.json")
    assert (tmp_path / "results" / "soak.json").read_text().endswith("}\n")


@pytest.mark.parametrize(
    "counts",
    [
        {"wrong": 1},
        {"failed": 1},
        {"stuck": 1},
        {"max_disk": 1001},
        *({name: 0} for name in MUST_HAPPEN),
        {"hits_vllm-1": 0},
    ],
    ids=str,
)
def test_each_count_can_fail_it(counts: dict[str, float]) -> None:
    assert len(replace(SOUND, counts={**SOUND.counts, **counts}).violations()) == 1


def test_what_leaks_or_ended_fails_it() -> None:
    leak = Trend("sglang", 2, 300.0, 700.0, 9.0, 0.0)
    two = {**SOUND.counts, "hits_vllm-2": 5.0}
    assert "sglang, life 2" in replace(SOUND, trends=[*SOUND.trends, leak]).violations()[0]
    vllm = Trend("vllm-1", 1, 300.0, 700.0, 1.2 * MEMORY_MIB_PER_MINUTE, 0.0)
    assert len(replace(SOUND, trends=[vllm]).violations()) == 1
    assert "vllm-2" in replace(SOUND, servers=["vllm-1", "vllm-2"], counts=two).violations()[0]
    defect = "sglang: kvlingua: ERROR: sglang step: KeyError; this is a defect of kvlingua"
    assert replace(SOUND, warnings=["vllm-1: kvlingua: WARNING: x", defect]).violations() == [defect]
    assert len(replace(SOUND, trends=[]).violations()) == 1
    assert replace(SOUND, errors=["vllm-1 ended by itself"]).violations() == ["vllm-1 ended by itself"]
