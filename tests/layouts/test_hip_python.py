"""How AMD's Python bindings are called. They need an AMD GPU to do anything, so that a stand-in takes the calls: what
is shown is which, in what order, and what becomes of HIP's errors."""

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from kvlingua.layouts import hip_python
from kvlingua.layouts.hip_python import HipError


class Hip:
    """Two devices. Every call is noted; those named in `wrong` give that error."""

    hipHostRegisterPortable, hipHostRegisterMapped = 1, 2

    def __init__(self, **wrong: int) -> None:
        self.device, self.calls, self.wrong = 1, list[tuple[Any, ...]](), wrong

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> tuple[Any, ...]:
            self.calls.append((name, *arguments))
            if name in self.wrong:
                return (self.wrong[name],)
            if name == "hipSetDevice":
                (self.device,) = arguments
            values = {
                "hipGetDevice": (self.device,),
                "hipGetDeviceCount": (2,),
                "hipGetDeviceProperties": (SimpleNamespace(gcnArchName=b"gfx90a:sramecc+:xnack-"),),
            }
            return 0, *values.get(name, ())

        return call


def test_memory_is_registered_on_its_device_and_the_threads_own_is_given_back() -> None:
    hip = Hip()
    hip_python.register(hip, 0, 4096, 100)
    hip_python.unregister(hip, 0, 4096)
    assert [call for call in hip.calls if "Register" in call[0] or "Unregister" in call[0]] == [
        ("hipHostRegister", 4096, 100, 3),
        ("hipHostUnregister", 4096),
    ]
    assert [call[0] for call in hip.calls[:4]] == ["hipGetDevice", "hipSetDevice", "hipHostRegister", "hipSetDevice"]
    assert hip.device == 1


def test_what_hip_says_is_raised_and_the_device_given_back() -> None:
    hip = Hip(hipHostRegister=2)
    with pytest.raises(HipError, match="2"):
        hip_python.register(hip, 0, 4096, 100)
    assert hip.device == 1
    with pytest.raises(HipError, match="101"):
        hip_python.architecture(Hip(hipGetDeviceProperties=101), 5)
    assert hip_python.architecture(hip, 0) == "gfx90a:sramecc+:xnack-"


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """hip-python, as if it were installed."""
    module = ModuleType("hip")
    module.hip, module.hiprtc = Hip(), SimpleNamespace()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "hip", module)
    hip_python.bindings.cache_clear()
    monkeypatch.setattr(hip_python, "run_times", lambda: set())
    return module


@pytest.fixture(autouse=True)
def afresh() -> Any:
    yield
    hip_python.bindings.cache_clear()


def test_the_bindings_are_the_packages(package: ModuleType) -> None:
    found = hip_python.bindings()
    assert (found.hip, found.hiprtc, found.why) == (package.hip, package.hiprtc, "")


def test_another_hip_than_the_processs_is_refused(package: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory registered with one run time is unknown to the other."""
    loaded = iter([{"torch's"}, {"torch's", "another"}])
    monkeypatch.setattr(hip_python, "run_times", lambda: next(loaded))
    found = hip_python.bindings()
    assert found.hip is None
    assert "another" in found.why
    assert "ROCM_PATH" in found.why


def test_without_the_package_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "hip", None)
    hip_python.bindings.cache_clear()
    assert "hip-python can't be used" in hip_python.bindings().why
