"""Real SGLang processes. A start takes some 20 seconds, so that a launch serves many cases."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from demo.job import MODEL
from engines.drivers.driver import Driver
from engines.launch import available

# Another release to run these tests with, such as `sglang==0.5.22`.
RELEASE = os.environ.get("TEST_SGLANG", "sglang")
Launcher = Callable[..., Driver]


def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.engine)
            item.add_marker(pytest.mark.timeout(900))
            if not available(RELEASE):
                item.add_marker(
                    pytest.mark.skip(f"its environment isn't built: run `python -m engines build {RELEASE}`")
                )


@pytest.fixture(scope="module")
def launch(tmp_path_factory: pytest.TempPathFactory) -> Launcher:
    """Start SGLang with the demo's model. `store`: the folder of the store; without it there is no kvlingua."""
    folder = tmp_path_factory.mktemp("sglang")
    count = 0

    def start(store: Path | None = None, **options: Any) -> Driver:
        nonlocal count
        count += 1
        return Driver(
            RELEASE,
            options.pop("model", MODEL),
            log=folder / f"{count}.log",
            url=store.as_uri() if store else None,
            cache=store is not None,
            **{"page": 16, **options},
        )

    return start
