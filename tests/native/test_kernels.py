"""What `make kernels-report` reads out of what compilers say; and, where there is one, that it notices a spill."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.native import kernels
from tests.native.kernels import Kernel

PTXAS = """\
ptxas info    : Compiling entry function '_ZN3kvl14convert_kernelILj497EEEvNS_4WorkIXT_EEE' for 'sm_90'
ptxas info    : Function properties for _ZN3kvl14convert_kernelILj497EEEvNS_4WorkIXT_EEE
    8 bytes stack frame, 4 bytes spill stores, 4 bytes spill loads
ptxas info    : Used 48 registers, used 1 barriers, 8 bytes cumulative stack size, 13568 bytes smem
"""
CLANG = """\
kernel.h:38:1: remark: Function Name: _ZN3kvl14convert_kernelILj497EEEvNS_4WorkIXT_EEE
kernel.h:38:1: remark:     SGPRs: 98 [-Rpass-analysis=kernel-resource-usage]
kernel.h:38:1: remark:     VGPRs: 51 [-Rpass-analysis=kernel-resource-usage]
kernel.h:38:1: remark:     ScratchSize [bytes/lane]: 16 [-Rpass-analysis=kernel-resource-usage]
kernel.h:38:1: remark:     VGPRs Spill: 2 [-Rpass-analysis=kernel-resource-usage]
kernel.h:38:1: remark:     LDS Size [bytes/block]: 13568 [-Rpass-analysis=kernel-resource-usage]
"""


def test_what_nvcc_says() -> None:
    assert list(kernels.of_nvcc("90", "nvcc", PTXAS)) == [Kernel("sm_90", "nvcc", 497, 48, 4, 8, 13568)]


def test_what_clang_says() -> None:
    assert list(kernels.of_clang("gfx942", "clang", CLANG)) == [Kernel("gfx942", "clang", 497, 51, 2, 16, 13568)]


@pytest.mark.skipif(not shutil.which("nvcc"), reason="there is no nvcc")
def test_the_kernel_for_long_tables_is_compiled_too() -> None:
    """Both, of one architecture."""
    found = kernels.compiled("cuda", kernels.CUDA[0])
    short, long = sorted(kernel.words for kernel in found)
    assert 8 * short < 4096 < 8 * long < 32764
    assert not any(kernel.spilled or kernel.stack for kernel in found)


def test_a_kernel_that_is_not_named(monkeypatch: pytest.MonkeyPatch) -> None:
    one = [("nvcc", lambda architecture, command, output: PTXAS, kernels.of_nvcc)]
    monkeypatch.setattr(kernels, "compilers", lambda: {"cuda": one})
    with pytest.raises(SystemExit, match="named not 2 kernels"):
        kernels.compiled("cuda", "90")


def test_an_architecture_that_nobody_knows(tmp_path: Path) -> None:
    """Neither is it compiled by the next best, nor passed over in silence."""
    if not shutil.which("nvcc"):
        pytest.skip("there is no nvcc")
    with pytest.raises(kernels.Unknown):
        kernels.nvcc("31", "nvcc", tmp_path / "kernels")
    assert kernels.compiled("cuda", "31") == []
