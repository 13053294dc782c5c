"""For all tests: property tests have no deadline per example, because the machine may be busy with other work."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from kvlingua.common import bulk
from kvlingua.layouts import native
from tests.native import builds

pytest.register_assert_rewrite("kvlingua.adapters.conformance.suite")

settings.register_profile("kvlingua", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("long", settings.get_profile("kvlingua"), max_examples=5000)  # --hypothesis-profile=long
settings.load_profile("kvlingua")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--native-library", type=Path, help="test this build of the native library (make check-native)")
    parser.addoption("--twin-library", type=Path, help="and this one of the host twin of the kernels for GPUs")


def pytest_configure(config: pytest.Config) -> None:
    path: Path | None = config.getoption("--native-library")
    if path is not None:
        native.library_path = lambda: path
    twin: Path | None = config.getoption("--twin-library")
    if twin is not None:
        builds.twin = lambda: twin


def pytest_report_header(config: pytest.Config) -> str:
    return f"{native.describe()} ({native.library_path()})"


@pytest.fixture(params=["in bulk", "one by one"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How objects go between files and engines: by the native library, or through Python."""
    name: str = request.param
    if name == "one by one":
        monkeypatch.setattr(bulk, "available", lambda: False)
    elif not bulk.available():
        pytest.skip(native.describe())
    return name


@pytest.fixture(params=["file", "file, one by one", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty store of each kind, files by either way."""
    if request.param == "file, one by one":
        monkeypatch.setattr(bulk, "available", lambda: False)
    return "memory://" if request.param == "memory" else f"file://{tmp_path}/store"


@pytest.fixture
def one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are read one by one in Python, as without the native library."""
    monkeypatch.setattr(bulk, "available", lambda: False)
