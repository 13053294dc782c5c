"""The kernels for GPUs: found, checked, called. Their interface is csrc/kvlingua_gpu.h.

CUDA or HIP is decided by what the process already has. Libraries are loaded at first use; ours for CUDA needs no driver
to be loaded, that for HIP takes the HIP run time of the process.
"""

from __future__ import annotations

import ctypes
import sys
from ctypes import byref, c_int32, c_int64, pointer
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

from kvlingua.layouts import just_in_time, native, torch_streams, verdict
from kvlingua.layouts.checks import check, scales_error
from kvlingua.layouts.device_addresses import use_device_addresses
from kvlingua.layouts.errors import LayoutError
from kvlingua.layouts.gpu_abi import ABI_VERSION, Call, Device, declare
from kvlingua.layouts.lane import Lane, lane
from kvlingua.layouts.memory import Buffer
from kvlingua.layouts.plan import Plan
from kvlingua.layouts.staging import PARTS, Stage, can_stage, runs, stages
from kvlingua.layouts.tuning import Tuning, tuning
from kvlingua.layouts.view import View

NO_VERDICT = 1  # KVL_NULL
CAPTURING = range(1900, 1909)
"""KVL_PLATFORM_ERROR and what CUDA and HIP both call errors of stream capture."""

Platform = Literal["cuda", "hip"]


class Loaded(NamedTuple):
    """A library, or None and why it can't be used."""

    library: ctypes.CDLL | None
    description: str


def library_path(platform: Platform) -> Path:
    """Where an installation with that platform's compiler has put its library."""
    return native.library_path().with_name(f"libkvlingua_{platform}.so")


_hip: Loaded | None = None
_decided: dict[tuple[str, int], Loaded] = {}


@cache
def load(path: Path) -> Loaded:
    """The library at `path` with its functions declared."""
    if not path.is_file():
        return Loaded(None, f"no {path.name} (install kvlingua again where there is nvcc or hipcc)")
    try:
        library = ctypes.CDLL(str(path))
        version = int(library.kvl_gpu_abi_version())
        if version != ABI_VERSION:
            return Loaded(None, f"{path.name} has ABI {version} instead of {ABI_VERSION}: install kvlingua again")
        declare(library)
    except (OSError, AttributeError) as error:
        return Loaded(None, f"{path.name} doesn't load: {error}")
    return Loaded(library, f"{path.name}, ABI {version}")


def platform() -> Platform | None:
    """What the process already has: torch's own platform, else a driver or run time that is loaded; else None."""
    torch: Any = sys.modules.get("torch")
    if torch is not None:
        return "hip" if torch.version.hip else "cuda" if torch.version.cuda else None
    if _mapped("libamdhip64.so"):
        return "hip"
    return "cuda" if _mapped("libcuda.so") else None


def _mapped(name: str) -> str | None:
    """The path of a shared library that the process has loaded."""
    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as maps:
        paths = (line.split(maxsplit=5)[-1].strip() for line in maps if name in line)
        return next((path for path in paths if path.startswith("/") and Path(path).name.startswith(name)), None)


def here() -> Loaded:
    """The library for this process's platform."""
    found = platform()
    if found is None:
        return Loaded(None, "this process has neither CUDA nor HIP: import a torch built for one of them first")
    return _on_hip() if found == "hip" else load(library_path(found))


def _on_hip() -> Loaded:
    """The library for AMD's GPUs, whose calls of HIP go to the run time that the process has."""
    global _hip
    if _hip is None:
        runtime = _mapped("libamdhip64.so")
        if runtime is None:
            return Loaded(
                None, "torch is built for ROCm, but libamdhip64.so isn't loaded: use a GPU through torch first"
            )
        ctypes.CDLL(runtime, mode=ctypes.RTLD_GLOBAL)
        _hip = load(library_path("hip"))
    return _hip


def available(index: int = 0) -> bool:
    """Whether memory of that GPU can be converted by our kernels."""
    return on(index).library is not None


def on(index: int) -> Loaded:
    """The library for this process's platform, once it has shown that it has code for that GPU; which is loaded then.

    Asked once for each GPU: all kernels are loaded then, so that nothing has to be while a graph is captured. Raises
    LayoutError where this thread captures one now and the platform doesn't let it be loaded; nothing is decided then.
    """
    found = here()
    if found.library is None:
        return found
    key = found.description, index
    if key not in _decided:
        _decided[key] = _ready(found, found.library, index)
    return _decided[key]


def _ready(found: Loaded, library: ctypes.CDLL, index: int) -> Loaded:
    count = c_int32(0)
    code = library.kvl_gpu_devices(byref(count))
    if not code and index >= count.value:
        return Loaded(None, f"{found.description}, finds {count.value} devices, none with number {index}")
    code = code or library.kvl_gpu_ready(index)
    if code in CAPTURING:
        raise LayoutError(
            f"kernels can't be loaded on device {index} while a graph is captured: convert something there before"
            f" ({_message(library, code)})"
        )
    if not code:
        return found
    why = f"{found.description}, can't use device {index}: {_message(library, code)}"
    if code in just_in_time.NO_CODE and library.kvl_gpu_platform() == b"hip":
        built = just_in_time.load(library, index)
        return Loaded(None, f"{why}; {built}") if built else found
    return Loaded(None, why)


def _message(library: ctypes.CDLL, code: int) -> str:
    said: bytes = library.kvl_gpu_message(code)
    return said.decode(errors="replace")


def describe() -> str:
    """The libraries that are installed, and the devices that each finds, in one line."""
    kinds: tuple[Platform, ...] = ("cuda", "hip")
    built = [_devices(kind) for kind in kinds if library_path(kind).is_file()]
    return "; ".join(built) or "no libraries for GPUs (install kvlingua again where there is nvcc or hipcc)"


def _devices(kind: Platform) -> str:
    """A library and its devices. That for CUDA brings all it needs but the driver; HIP must be in the process."""
    path = library_path(kind)
    if kind == "hip" and platform() != "hip":
        return f"{path.name}: usable in a process that has HIP, as torch for ROCm brings it"
    library, description = here() if kind == "hip" else load(path)
    if library is None:
        return description
    count = c_int32(0)
    code = library.kvl_gpu_devices(byref(count))
    if code:
        return f"{description}: no device ({_message(library, code)})"
    names = [_name(library, index) for index in range(count.value)]
    return f"{description}: {', '.join(names) or 'no device'}"


def _name(library: ctypes.CDLL, index: int) -> str:
    try:
        return str(_describe(library, index).name.decode(errors="replace"))
    except LayoutError as error:
        return f"device {index}, which can't be described ({error})"


@cache
def device(index: int) -> Device:
    """What a GPU is. Raises LayoutError if there is none of that number."""
    return _describe(_library(index), index)


@cache
def tuned(index: int) -> Tuning:
    """How conversions are cut on a GPU."""
    found = device(index)
    return tuning(found.name.decode(), found.multiprocessors)


def _describe(library: ctypes.CDLL, index: int) -> Device:
    found = Device()
    _check(library, library.kvl_gpu_describe(index, byref(found)))
    return found


def run(plan: Plan, stream: int | None = None) -> None:
    """Launch a plan of a GPU's memory; it has happened once `stream` has come that far.

    stream: a cudaStream_t or hipStream_t as a number; None: torch's current one, or without torch the default one.
    Only plans that must compare scales before they write (static scales) are waited for, on their stream.
    Raises LayoutError if there is no library, or it refuses, as it does where such a plan's stream is being captured;
    nothing was written then. Also after an error of the platform; part of the target may have been written by then.
    """
    index = device_index(plan)
    library = _library(index)
    queue = torch_streams.current(index) if stream is None else stream
    size = tuned(index)
    source, target = plan.source, plan.target
    pinned = source if source.pool.device == "pinned" else target if target.pool.device == "pinned" else None
    told = native.call(plan)
    kept = use_device_addresses(told, (source.pool, target.pool), index)
    piece_bytes = size.piece_bytes if pinned else 0
    call = Call(pointer(told), queue, 0, index, size.block_bytes, size.blocks, 0, piece_bytes)
    if pinned and _is_staged(plan, pinned, size) and not _pieces(plan, library, call):
        call.piece_bytes = 0
        beside = lane(library, index, queue)
        run_staged(plan, pinned, torch_streams.buffer(index, queue, size.staging_bytes), library, call, beside)
    else:
        launch(plan, library, call)
    del kept  # arrays that the call has read


def device_index(plan: Plan) -> int:
    """The number of the GPU that a plan runs on."""
    return int(plan.device.partition(":")[2] or 0)


def _pieces(plan: Plan, library: ctypes.CDLL, call: Call) -> int:
    """How many copies would be all there is to do; 0 where kernels are needed."""
    count = c_int64(0)
    _refuse(plan, library, library.kvl_gpu_pieces(byref(call), byref(count)))
    return count.value


def run_staged(
    plan: Plan, pinned: View, buffer: Buffer, library: ctypes.CDLL, call: Call, beside: Lane | None = None
) -> None:
    """Run a plan by way of a buffer on the device (staging.py), copies on the stream `beside`, or after the kernels on
    theirs. As `run`."""
    check(plan)  # of all stages, before the first one
    inward, queue = pinned is plan.source, call.stream or 0

    def convert(stage: Stage, stream: int) -> None:
        told = native.call(stage.plan)
        call.plan, call.stream = pointer(told), stream
        launch(stage.plan, library, call)

    def copy(stage: Stage, stream: int) -> None:
        for there, here, nbytes in stage.runs:
            target, source = (here, there) if inward else (there, here)
            _check(library, library.kvl_gpu_copy(call.device, stream, target, source, nbytes))

    first, second = (copy, convert) if inward else (convert, copy)
    if beside:
        beside.run(stages(plan, pinned, buffer, PARTS), first, second, queue, inward)
        return
    for stage in stages(plan, pinned, buffer):
        first(stage, queue)
        second(stage, queue)


def _is_staged(plan: Plan, pinned: View, size: Tuning) -> bool:
    """Whether so much is transferred, in so few runs, that copy engines are quicker; the buffer is torch's."""
    nbytes = pinned.pool.geometry.block_bytes(pinned.pool.extent, pinned.tokens)
    if not 0 < size.stage_bytes <= nbytes or "torch" not in sys.modules or plan.recipe.compares:
        return False
    return can_stage(plan, pinned, size.staging_bytes // PARTS) and nbytes >= size.run_bytes * runs(pinned)


def launch(plan: Plan, library: ctypes.CDLL, call: Call) -> None:
    """Make a call for a plan; where it compares, wait for the verdict. As `run`."""
    if not plan.recipe.compares:
        _refuse(plan, library, library.kvl_gpu_convert(byref(call)))
        return
    if library._handle not in verdict.kept():  # pinning a page would end a capture, which is to be refused instead
        call.verdict = 0
        code = library.kvl_gpu_convert(byref(call))
        if code != NO_VERDICT:
            _refuse(plan, library, code)
    page = verdict.page(library, call.device)
    call.verdict = page.address_on(call.device)
    code = library.kvl_gpu_convert(byref(call))
    # After an error of the platform part of it may be under way.
    waited = library.kvl_gpu_wait(call.device, call.stream) if code in (0, *range(1001, 2000)) else 0
    _refuse(plan, library, code or waited)
    _refuse(plan, library, verdict.value(page))


def run_twin(plan: Plan, path: Path, block_bytes: int = 0, blocks: int = 0) -> None:
    """Run a plan of the CPU's memory by the host twin of the kernels, for tests. As `run`."""
    library, description = load(path)
    if library is None:
        raise LayoutError(description)
    told = native.call(plan)
    launch(plan, library, Call(pointer(told), None, 0, 0, block_bytes, blocks, 0))


def _library(index: int) -> ctypes.CDLL:
    library, why = on(index)
    if library is None:
        raise LayoutError(f"memory of a GPU can't be converted: {why}")
    return library


def _check(library: ctypes.CDLL, code: int) -> None:
    if code:
        raise LayoutError(f"the kernels refuse: {_message(library, code)}")


def _refuse(plan: Plan, library: ctypes.CDLL, code: int) -> None:
    if code:
        check(plan)  # says which block or address it is, where it can
        if code == native.SCALES:
            raise scales_error(plan)
        _check(library, code)
