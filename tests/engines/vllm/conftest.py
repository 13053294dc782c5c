"""Real vLLM processes. Most run the engine inside the driver's process, which starts in a few seconds."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from demo.job import MODEL
from engines.drivers.driver import Driver
from engines.launch import available
from kvlingua.adapters.vllm.versions import was_run

# Another release to run these tests with, such as `vllm==0.28.0`.
RELEASE = os.environ.get("TEST_VLLM", "vllm")
INSIDE = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "OMP_NUM_THREADS": "1"}
Launcher = Callable[..., Driver]


def needs_support(what: str) -> pytest.MarkDecorator:
    """Skip where the release is one that kvlingua wasn't run with this in (`versions.RUN_WITH`)."""
    version = RELEASE.partition("==")[2]
    return pytest.mark.skipif(
        bool(version) and not was_run(what, version), reason=f"kvlingua supports no {what} in {RELEASE}"
    )


def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.engine)
            item.add_marker(pytest.mark.timeout(600))
            if not available(RELEASE):
                item.add_marker(
                    pytest.mark.skip(f"its environment isn't built: run `python -m engines build {RELEASE}`")
                )


@pytest.fixture(scope="module")
def launch(tmp_path_factory: pytest.TempPathFactory) -> Launcher:
    """Start vLLM with the demo's model. `store`: the folder of the store, without it there is no kvlingua; `processes`:
    as users run it, with a scheduler and a worker in processes of their own."""
    folder = tmp_path_factory.mktemp("vllm")
    count = 0

    def start(
        store: Path | None = None, *, processes: bool = False, settings: dict[str, str] | None = None, **options: Any
    ) -> Driver:
        nonlocal count
        count += 1
        return Driver(
            RELEASE,
            options.pop("model", MODEL),
            log=folder / f"{count}.log",
            url=store.as_uri() if store else None,
            cache=store is not None,
            settings={**({} if processes else INSIDE), **(settings or {})},
            **{"page": 32, **options},
        )

    return start
