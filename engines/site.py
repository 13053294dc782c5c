"""`build/site`: this clone, installed as a user would have it, for engine processes to find through PYTHONPATH.

The engines' environments are shared by all clones, so kvlingua is not installed in them. Each state of the sources gets
a folder of its own, `build/site-<digest>`, and `build/site` is a link to the newest: a running engine keeps the code it
was started with.
"""

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

from engines.environment import FOREIGN, BuildError
from engines.lock import locked
from engines.progress import step

CLONE = Path(__file__).resolve().parent.parent
FOLDERS = ("adapters", "common", "layouts", "csrc", "rocm", "src")
SOURCES = (*FOLDERS, "pyproject.toml", "CMakeLists.txt", "README.md", "LICENSE")
KEPT = 3  # states that stay, for engines started before the last change


def site(clone: Path = CLONE) -> Path:
    """Install the clone's sources as they are now, unless they already are, and return the folder.

    Raises:
        BuildError: pip could not build or install it; the message ends with pip's last lines.
    """
    build = clone / "build"
    with locked(build / "site.lock"):
        folder = build / f"site-{sources_digest(clone)[:12]}"
        if not folder.is_dir():
            with step(f"installing kvlingua into {folder.relative_to(clone)}"):
                _install(clone, folder)
        os.utime(folder)
        _point(build / "site", folder)
        installed = sorted(build.glob("site-????????????"), key=lambda path: path.stat().st_mtime, reverse=True)
        for old in installed[KEPT:]:
            shutil.rmtree(old)
    return folder


def sources_digest(clone: Path) -> str:
    """Hex sha256 over the names and bytes of all files that a wheel is built from."""
    digest = hashlib.sha256()
    for top in SOURCES:
        tree = clone / top
        for path in sorted(tree.rglob("*")) if tree.is_dir() else [tree]:
            if path.is_file() and "__pycache__" not in path.parts:
                data = path.read_bytes()
                digest.update(f"{path.relative_to(clone)}\0{len(data)}\0".encode())
                digest.update(data)
    return digest.hexdigest()


def _install(clone: Path, folder: Path) -> None:
    python = clone / ".venv" / "bin" / "python"
    if not python.exists():
        raise BuildError(f"{python} is not there: run `make setup` first")
    temporary = folder.with_suffix(".partial")
    shutil.rmtree(temporary, ignore_errors=True)
    # Without build isolation the tools in .venv build it, so that nothing is downloaded.
    pip = [
        str(python),
        "-m",
        "pip",
        "install",
        "--no-deps",
        "--no-build-isolation",
        # The engines' environments are for CPUs. A folder of its own: what is set is remembered there.
        "--config-settings=cmake.define.KVLINGUA_GPU=OFF",
        "--config-settings=build-dir=build/cmake/site",
        "--target",
        str(temporary),
        str(clone),
    ]
    environment = {k: v for k, v in os.environ.items() if k not in FOREIGN} | {"PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    done = subprocess.run(pip, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = (done.stdout + done.stderr).splitlines()
        raise BuildError("\n".join(["kvlingua could not be installed from this clone:", *lines[-15:]]))
    compiler = os.environ.get("CXX", "c++")
    if shutil.which(compiler) and not any((temporary / "kvlingua" / "_lib").glob("*.so")):
        raise BuildError(f"the native library could not be built although {compiler} is there; `make setup` shows why")
    temporary.rename(folder)


def _point(link: Path, folder: Path) -> None:
    if link.is_symlink() and link.resolve() == folder:
        return
    temporary = link.with_suffix(".link")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(folder.name)
    temporary.replace(link)
