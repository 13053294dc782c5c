"""GPUs without one: which library is taken, what is said where there is none, what no device reaches."""

from __future__ import annotations

import ctypes
import ctypes.util
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from kvlingua.layouts import Buffer, Geometry, LayoutError, Pool, convert, format, gpu, native, torch_streams
from kvlingua.layouts.pinned import Pinned, cpus_near
from kvlingua.layouts.plan import make_plan
from kvlingua.layouts.tuning import tuning
from tests.native import builds

MODEL = Geometry.kv(1, 2, 4, "float16")


def pool(device: str, at: int = 1 << 30) -> Pool:
    """A pool that no test may touch: there is no memory."""
    return format("vllm_lbhnc").pool(MODEL, MODEL.full, page=4, blocks=2, buffers=[Buffer(at, 256, device=device)])


def plan_device(ours: str, theirs: str) -> str:
    return make_plan(pool(ours).view([0], 0, 4), pool(theirs, 1 << 31).view([0], 0, 4)).device


@pytest.mark.parametrize(
    ("ours", "theirs", "device"),
    [
        ("cpu", "cpu", "cpu"),
        ("cpu", "pinned", "cpu"),
        ("pinned", "pinned", "cpu"),
        ("cuda:0", "cuda:0", "cuda:0"),
        ("cuda:1", "pinned", "cuda:1"),
        ("pinned", "cuda:1", "cuda:1"),
    ],
)
def test_where_a_plan_runs(ours: str, theirs: str, device: str) -> None:
    assert plan_device(ours, theirs) == device


@pytest.mark.parametrize(
    ("ours", "theirs", "message"),
    [
        ("cuda:0", "cpu", "source lies on device 'cuda:0', the other side in memory of the CPU that isn't pinned"),
        ("cpu", "cuda:0", "target lies on device 'cuda:0', the other side in memory of the CPU that isn't pinned"),
        ("cuda:0", "cuda:1", "the other side in that of 'cuda:1'"),
        ("meta", "cpu", "source lies on device 'meta'; only"),
    ],
)
def test_what_no_device_reaches(ours: str, theirs: str, message: str) -> None:
    with pytest.raises(LayoutError, match=message):
        plan_device(ours, theirs)


def test_a_process_without_a_platform_is_told_so() -> None:
    """This torch is the CPU's: nothing is launched, and the refusal names what is missing."""
    if gpu.available():
        pytest.skip("there is a GPU's library and platform here")
    source, target = pool("cuda:0").view([0], 0, 4), pool("cuda:0", 1 << 31).view([0], 0, 4)
    with pytest.raises(LayoutError, match="memory of a GPU can't be converted: this process has neither CUDA nor HIP"):
        convert(source, target, backend="native")


@pytest.mark.parametrize(("hip", "cuda", "found"), [(None, "13.0", "cuda"), ("6.4", None, "hip"), (None, None, None)])
def test_torch_decides(monkeypatch: pytest.MonkeyPatch, hip: str | None, cuda: str | None, found: str | None) -> None:
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(version=SimpleNamespace(hip=hip, cuda=cuda)))
    assert gpu.platform() == found


def test_without_torch_what_is_loaded_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    assert gpu.platform() is None
    monkeypatch.setattr(gpu, "_mapped", lambda name: "/usr/lib/libcuda.so.1" if name == "libcuda.so" else None)
    assert gpu.platform() == "cuda"
    assert torch_streams.current(0) == 0


def test_a_mapped_library_is_found() -> None:
    assert gpu._mapped("libc.so") is not None
    assert gpu._mapped("libnothing.so") is None


def built(kind: gpu.Platform, compiler: str) -> bool:
    """Whether an installation has made that library: it must have, where its compiler is."""
    there = native._LIBRARY.with_name(f"libkvlingua_{kind}.so").is_file()
    assert there or not shutil.which(compiler), f"{compiler} is here, but `make setup` left no library for {kind}"
    return there


def test_the_cuda_library_loads_without_a_driver() -> None:
    """In a process of its own, and then says what is missing rather than fail."""
    if not built("cuda", "nvcc"):
        pytest.skip("there is no nvcc")
    script = "from kvlingua.layouts import gpu; print(gpu.load(gpu.library_path('cuda')).library is not None)"
    done = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"
    assert gpu.describe().startswith(f"libkvlingua_cuda.so, ABI {gpu.ABI_VERSION}: ")


def test_the_hip_library_takes_the_run_time_of_the_process() -> None:
    """Alone it doesn't load; once the process has HIP, it does, and says what HIP says."""
    runtime = ctypes.util.find_library("amdhip64")
    if not built("hip", "hipcc") or runtime is None:
        pytest.skip("there is no hipcc, or no HIP")
    script = f"""
import ctypes
from kvlingua.layouts import gpu
print("in a process that has HIP" in gpu.describe())
ctypes.CDLL({runtime!r})
print(gpu.platform(), f"libkvlingua_hip.so, ABI {{gpu.ABI_VERSION}}: " in gpu.describe())
"""
    done = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["True", "hip True"]


def test_absent_and_foreign_libraries(tmp_path: Path) -> None:
    assert gpu.load(tmp_path / "absent.so").description.startswith("no absent.so")
    (tmp_path / "text.so").write_text("no library")
    assert "doesn't load" in gpu.load(tmp_path / "text.so").description
    assert "doesn't load" in gpu.load(native.library_path()).description  # a library, but not this interface


def test_pinned_memory_by_the_twin() -> None:
    twin = builds.twin()
    library = gpu.load(twin).library if twin else None
    if library is None:
        pytest.skip("there is no C++ compiler to make the host twin with")
    pinned = Pinned(library, 5000, "0000:00:00.0")
    assert (pinned.buffer.device, pinned.buffer.nbytes) == ("pinned", 5000)
    assert ctypes.string_at(pinned.address, 5000) == bytes(5000)
    pinned.close()
    pinned.close()
    found = gpu.Device()
    assert library.kvl_gpu_describe(0, ctypes.byref(found)) == 0
    assert found.name == b"host twin"


def test_memory_that_torch_has_pinned() -> None:
    import torch

    tensor = torch.zeros(4)
    assert Buffer.of(tensor).device == "cpu"
    tensor.is_pinned = lambda: True  # type: ignore[method-assign, assignment, misc]
    assert Buffer.of(tensor).device == "pinned"


def test_every_function_is_declared() -> None:
    """Addresses have 64 bits; ctypes would cut those of a function that isn't."""
    twin = builds.twin()
    library = gpu.load(twin).library if twin else None
    if library is None:
        pytest.skip("there is no C++ compiler to make the host twin with")
    header = (Path(__file__).parents[2] / "csrc" / "kvlingua_gpu.h").read_text("utf-8")
    names = {
        line.partition("(")[0].split()[-1].lstrip("*") for line in header.splitlines() if line.startswith("KVL_API")
    }
    assert {"kvl_gpu_convert", "kvl_gpu_copy"} < names
    undeclared = {name for name in names if getattr(library, name).argtypes is None}
    assert undeclared == {"kvl_gpu_abi_version"}


def test_cpus_near_a_device(tmp_path: Path) -> None:
    device = tmp_path / "bus/pci/devices/0000:0a:00.0"
    node = tmp_path / "devices/system/node/node1"
    for folder in (device, node):
        folder.mkdir(parents=True)
    (device / "numa_node").write_text("1\n")
    (node / "cpulist").write_text("4-6,9\n")
    assert cpus_near("0000:0A:00.0", tmp_path) == {4, 5, 6, 9}
    (device / "numa_node").write_text("-1\n")
    assert cpus_near("0000:0A:00.0", tmp_path) == set()
    assert cpus_near("", tmp_path) == cpus_near("0000:0b:00.0", tmp_path) == set()


def test_every_device_has_a_tuning() -> None:
    assert tuning("NVIDIA H100 80GB HBM3", 132).blocks % 132 == 0
    assert tuning("", 1).block_bytes >= 4096
