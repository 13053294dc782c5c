"""Proof of the native library, as `make check-native`, `make fuzz` and `make check-cpus` run it.

python -m tests.native.check native [--runs N]      strict builds, sanitized build, its tests, fuzzing
python -m tests.native.check fuzz --seconds N       fuzzing alone
python -m tests.native.check cpus                   on aarch64, and on an x86-64 without AVX, emulated
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

from tests.native.builds import CLONE, FOLDER, Compiler, NoTool, build, compilers, library, say
from tests.native.emulated import check_cpus

TESTS = ["tests/layouts", "tests/native", "tests/common/test_xxh3.py"]
TESTS += sorted(str(path.relative_to(CLONE)) for path in CLONE.glob("tests/common/test_bulk*.py"))
# Of libraries that a GPU's compiler made, which aren't sanitized and don't lie beside one that is.
OTHERS = ["--ignore=tests/native/test_kernels.py"]
OTHERS += ["--deselect=tests/layouts/test_gpu.py::test_the_cuda_library_loads_without_a_driver"]
FUZZERS = ("fuzz_cpu", "fuzz_gpu")
"""Of the kernels for CPUs, and of the host twin of those for GPUs."""


def strict() -> None:
    """All warnings are errors, with every compiler there is."""
    for compiler in compilers():
        say(f"{compiler.command}: release build, every warning an error")
        folder = build(f"strict-{compiler.command}", compiler.command)
        for fuzzer in FUZZERS:
            run_fuzz(folder / fuzzer, "--runs", "2000")
        subprocess.run([folder / "every_number"], check=True)


def sanitizing(compiler: Compiler) -> list[str]:
    """CMake's options; the tools find the sanitizer's library where the compiler keeps it."""
    runtime = compiler.runtime()
    assert runtime is not None
    return ["-DSANITIZE=ON", "-DCMAKE_BUILD_TYPE=RelWithDebInfo", f"-DCMAKE_BUILD_RPATH={runtime.parent}"]


def sanitized() -> tuple[Path, Compiler]:
    """The folder of the sanitized build, and the compiler whose sanitizers they are."""
    found = compilers()
    if not found:
        raise NoTool("there is no C++ compiler: install g++, or clang with its compiler-rt")
    for compiler in found:
        if compiler.runtime():
            say(f"{compiler.command}: build with AddressSanitizer and UndefinedBehaviorSanitizer")
            return build(f"sanitized-{compiler.command}", compiler.command, *sanitizing(compiler)), compiler
    raise NoTool(
        f"{' and '.join(compiler.command for compiler in found)} lack the library of AddressSanitizer:"
        " install libasan (Debian's g++ brings it) or clang's compiler-rt"
    )


def environment() -> dict[str, str]:
    """Sanitizers end the process at the first report."""
    options = "halt_on_error=1:abort_on_error=1:print_stacktrace=1"
    # Python and torch never free all they took. A size that can't be had comes back as no memory, as it does in life.
    asan = f"{options}:detect_leaks=0:allocator_may_return_null=1"
    return {**os.environ, "ASAN_OPTIONS": asan, "UBSAN_OPTIONS": options, "OMP_NUM_THREADS": "1"}


def libraries(folder: Path) -> list[str]:
    """pytest's options to test the libraries of a build."""
    return [f"--native-library={library(folder)}", f"--twin-library={library(folder, 'twin')}"]


def alive(folder: Path) -> None:
    """The sanitizers are really there: each notices what it is for."""
    for mistake, words in (("heap", "heap-buffer-overflow"), ("shift", "shift exponent")):
        done = subprocess.run([folder / "overflow", mistake], env=environment(), capture_output=True, text=True)
        if done.returncode == 0 or words not in done.stderr:
            sys.exit(
                f"check-native: no sanitizer at work: `overflow {mistake}` gave {done.returncode}, {done.stderr!r}"
            )
    say("a heap overflow and a bad shift, made on purpose, are caught")


def run_fuzz(fuzzer: Path, *options: str, **variables: str) -> None:
    say(f"{fuzzer.name} {' '.join(options)}")
    if subprocess.run([fuzzer, *options], env=environment() | variables, cwd=fuzzer.parent).returncode:
        sys.exit(f"{fuzzer.name}: failed, see above; an input that failed is kept in {fuzzer.parent}")


def check_native(runs: int) -> None:
    strict()
    folder, compiler = sanitized()
    alive(folder)
    for fuzzer in FUZZERS:
        run_fuzz(folder / fuzzer, "--runs", str(runs))
    say("the tests of the native library, under the sanitizers")
    # The C++ library comes with it, so that the sanitizer finds what it wraps of exceptions. Reports are written by the
    # process to its standard error, which pytest must leave alone.
    preload = f"{compiler.runtime()} {compiler.asks('-print-file-name=libstdc++.so.6')}"
    variables = {"LD_PRELOAD": preload, "PYTHONMALLOC": "malloc"}  # each Python object an allocation of its own
    pytest = [sys.executable, "-m", "pytest", "-q", "--capture=sys", "--numprocesses=2", "--dist=loadfile"]
    command = [*pytest, "-p", "no:cacheprovider", "-m", "not engine", *libraries(folder), *TESTS, *OTHERS]
    sys.exit(subprocess.run(command, env=environment() | variables, cwd=CLONE).returncode)


def check_fuzz(seconds: int) -> None:
    clang = next((compiler for compiler in compilers() if compiler.clang and compiler.runtime()), None)
    if clang is None:
        folder, _ = sanitized()
        seed = int(time.time())
        say(f"fuzzing for {seconds} s with a driver of our own, seed {seed} (clang would bring libFuzzer)")
        for fuzzer in FUZZERS:
            run_fuzz(folder / fuzzer, "--seconds", str(seconds / len(FUZZERS)), "--seed", str(seed))
        return
    folder = build(f"libfuzzer-{clang.command}", clang.command, "-DLIBFUZZER=ON", *sanitizing(clang))
    say(f"fuzzing for {seconds} s with {clang.command}'s libFuzzer")
    options = [f"-max_total_time={seconds // len(FUZZERS)}", "-max_len=600", "-print_final_stats=1"]
    for fuzzer in FUZZERS:
        corpus = folder / f"corpus-{fuzzer}"
        corpus.mkdir(exist_ok=True)
        run_fuzz(folder / fuzzer, *options, str(corpus), LD_PRELOAD=str(clang.runtime()))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.native.check")
    parser.add_argument("what", choices=("native", "fuzz", "cpus"))
    parser.add_argument("--runs", type=int, default=100_000, help="plans to fuzz with (native)")
    parser.add_argument("--seconds", type=int, default=600, help="how long to fuzz (fuzz)")
    chosen = parser.parse_args()
    FOLDER.mkdir(parents=True, exist_ok=True)
    try:
        if chosen.what == "native":
            check_native(chosen.runs)
        elif chosen.what == "fuzz":
            check_fuzz(chosen.seconds)
        else:
            check_cpus()
    except NoTool as missing:
        sys.exit(f"check-{chosen.what}: {missing}")
    except subprocess.CalledProcessError as failed:
        sys.exit(f"check-{chosen.what}: {failed}")


if __name__ == "__main__":
    main()
