"""Version 1 of the format is frozen: its golden files stay as they are, to the byte.

A change that makes test_golden.py fail changes the format. It needs a new version: count FORMAT_VERSION up, write the
golden files of that version into a folder of their own, and freeze them here beside the others.
"""

import hashlib
from pathlib import Path

import pytest

from kvlingua.common.cli import main
from kvlingua.common.container import parse_header
from kvlingua.common.errors import ContainerError
from kvlingua.common.identity.namespace import FORMAT_VERSION

FOLDER = Path(__file__).parent
FROZEN = {
    1: {
        "float16_partly_rotated": "3669bd1a5fd07d77a1640b908b1b1e693b833a68c43da1dcc2157c602104fdc9",
        "float32": "e45755c5f3634ed530579eeb36650c2ab6fcaa529cd631e01ccffca036b2648c",
        "float8_e4m3fn_scaled_per_token": "ad7b9ed4b00b1360af338a2fc55bc9755ae66e1129773dedc670be24574aa537",
        "float8_e4m3fn_without_scales": "7e562c8fc583546c54fd2b4b43c08a2e0d4c1d9a25361f9ddb2a42fb2c6f960f",
        "float8_e4m3fnuz_scaled_per_tensor": "a0b5bad7f27ebff3375ccd4fa33de2c1c0c334601aa98e59c17c60a3ddd82b05",
        "float8_e5m2_scaled_per_head": "27da6e6b6f4275e0104c958d2d3b0d391385099d2b2b8c28acba180fe66bdec3",
        "gqa_bfloat16": "72e39581dad69dc3ef05bb5d022db2eabf70ddc416dd17e33cc44eb73aee90f3",
        "keys": "f2a75e63469d1cbb74bc10360aac7c35ad7c433d96d199e9117db666c24c34a5",
        "mla_bfloat16": "750577301392c740e081c15b769dbc410ae009731933704f59bc0a09bc59797f",
    }
}


@pytest.mark.parametrize("version", FROZEN)
def test_golden_files_are_as_they_were_frozen(version: int) -> None:
    files = [path for path in (FOLDER / f"v{version}").iterdir() if path.is_file()]
    found = {path.stem: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    assert found == FROZEN[version]


def test_the_version_that_is_written_is_frozen() -> None:
    assert max(FROZEN) == FORMAT_VERSION


def test_an_object_of_version_0_is_refused_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    path = FOLDER / "v0" / "object.safetensors"
    data = path.read_bytes()
    with pytest.raises(ContainerError, match="format version '0': this kvlingua reads 1") as refused:
        parse_header(data, len(data))
    assert refused.value.reason == "version"
    assert main(["inspect", str(path)]) == 1
    assert "format version '0': this kvlingua reads 1" in capsys.readouterr().out
