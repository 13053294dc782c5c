"""The adapter's views of SGLang's real pools, NHD rows and HND pages, and what it refuses to describe."""

from typing import Any

import pytest

from tests.engines.sglang.in_engine import run

pytestmark = pytest.mark.engine

LAYOUTS = {"sglang_nhd": {}, "sglang_hnd": {"SGLANG_USE_HND_KVCACHE": "1"}}


@pytest.fixture(scope="module", params=LAYOUTS)
def report(request: pytest.FixtureRequest) -> dict[str, Any]:
    return {"layout": request.param, **run("pools_process.py", **LAYOUTS[request.param])}


def test_every_token_lies_where_sglang_has_it(report: dict[str, Any]) -> None:
    right = {"layout": report["layout"], "written": True, "read": True, "untouched": True}
    assert len(report["copies"]) == 6
    assert report["copies"] == dict.fromkeys(report["copies"], right)


def test_other_kinds_of_pool_are_refused_by_name(report: dict[str, Any]) -> None:
    for name, kind, why in (
        ("mla", "MLATokenToKVPool", "AMX or on a GPU only"),
        ("fp4", "MHATokenToKVPoolFP4", "scales"),
        ("swa", "SWAKVPool", "the last window only"),
    ):
        assert report["refused"][name].startswith(f"UnsupportedError: a KV cache of kind {kind} isn't supported: ")
        assert why in report["refused"][name]
    assert "float8" in report["refused"]["fp8"]


def test_claims_that_do_not_fit_the_model_are_refused(report: dict[str, Any]) -> None:
    claims = ("part of the layers", "other heads", "other dim", "other dtype", "transposed", "one layer elsewhere")
    assert {report["refused"][name].partition(":")[0] for name in claims} == {"LayoutError"}
    assert report["asymmetric"].startswith("LayoutError: expected v of layer 0")
    assert report["other page"].startswith("UnsupportedError: pages of 16 tokens in the pool, of 64")


def test_heads_of_ranks(report: dict[str, Any]) -> None:
    """Where they can't be shared evenly SGLang adds heads of zeros, which are none of the model's."""
    found = report["ranks"]
    assert found["4 on 2"] == [[0, 2], [2, 4]]
    assert found["4 on 4"] == [[0, 1], [1, 2], [2, 3], [3, 4]]
    for heads, uneven in ((2, "2 on 4"), (1, "1 on 2")):
        assert found[uneven][0].startswith("UnsupportedError: SGLang adds empty heads")
        assert found[uneven][0].endswith(f"a --tp-size that divides {heads}")


def test_host_pools_of_hicache(report: dict[str, Any]) -> None:
    found = report["hosts"]
    for layout in ("layer_first", "page_first", "page_first_direct", "page_head"):
        assert found[layout] == f"hicache_{layout} 5"
    assert found["page_unified"].startswith("UnsupportedError: --hicache-mem-layout page_unified isn't supported")
    assert found["other dtype"].startswith("LayoutError: expected a host pool of ")
    assert found["transposed"].startswith("LayoutError: expected a host pool of ")


def test_slots_that_are_not_whole_pages_are_refused(report: dict[str, Any]) -> None:
    assert len(report["slots"]) == 4
    assert all(error.startswith("LayoutError: the slots of tokens 0 to ") for error in report["slots"].values())
