"""The environment of one engine: a virtual environment in the user's cache folder, shared by all clones.

It is built where it stays, since a virtual environment can't be moved. What makes it whole is a marker, written last:
a folder without one is what an interrupted build left, and is removed and built anew.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from engines.lock import locked
from engines.progress import say, step
from engines.recipe import Recipe, Step

MARKER = "complete.json"
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
# What the caller's shell may hold that would lead Python or pip elsewhere.
FOREIGN = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "PIP_TARGET", "PIP_PREFIX", "PIP_USER", "PIP_REQUIRE_VIRTUALENV")


class BuildError(Exception):
    """An environment could not be built; the message says why and what to do."""


def default_root() -> Path:
    """The folder all clones of this user share."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kvlingua" / "engines"


@dataclass(frozen=True)
class Environment:
    recipe: Recipe
    root: Path

    @property
    def name(self) -> str:
        version = f"-{self.recipe.version}" if self.recipe.base else ""
        return f"{self.recipe.engine}{version}-{self.recipe.digest[:12]}"

    @property
    def folder(self) -> Path:
        return self.root / self.name

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    @property
    def log(self) -> Path:
        return self.root / f"{self.name}.log"

    @property
    def base(self) -> "Environment | None":
        """The one whose packages it sees, behind its own."""
        return Environment(self.recipe.base, self.root) if self.recipe.base else None

    @property
    def ready(self) -> bool:
        """Whether it was built to the end and the Python it was made with is still there; its base, likewise."""
        whole = (self.folder / MARKER).is_file() and self.python.exists()
        return whole and (self.base is None or self.base.ready)

    def build(self) -> None:
        """Build it unless it is there; wait for another process that is building it.

        Raises:
            BuildError: too little free space, a failed step, or an engine that can't be imported; only the log stays.
        """
        if self.ready:
            return
        if self.base is not None:
            self.base.build()
        wait = f"{self.recipe.engine}: another process is building {self.folder}, waiting for it"
        with locked(self.root / f"{self.name}.lock", waiting=lambda: say(wait)):
            if not self.ready:
                self._build()

    def _build(self) -> None:
        if self.folder.exists():
            say(f"{self.recipe.engine}: {self.folder} is incomplete, removing it")
            shutil.rmtree(self.folder)
        check_free_space([self])
        say(f"{self.recipe.engine} {self.recipe.version}: building {self.folder} (log: {self.log})")
        start = time.monotonic()
        try:
            self._run_steps()
            self._mark_complete()
        finally:
            if not self.ready:
                shutil.rmtree(self.folder, ignore_errors=True)
        say(f"{self.recipe.engine} {self.recipe.version}: ready after {time.monotonic() - start:.0f} s")

    def _run_steps(self) -> None:
        self.log.write_text("", encoding="utf-8")
        total = len(self.recipe.steps) + 2
        with step(f"  [1/{total}] making a virtual environment with Python {sys.version.split()[0]}"):
            self._run([sys.executable, "-m", "venv", "--without-pip", str(self.folder)])
            (self.folder / "tmp").mkdir()
            (self.folder / "lock.txt").write_text(self.recipe.lock, encoding="utf-8")
            if self.base is not None:
                (self._site_packages() / "base.pth").write_text(f"{self.base._site_packages()}\n", encoding="utf-8")
        for number, part in enumerate(self.recipe.steps, start=2):
            with step(f"  [{number}/{total}] {part.say}"):
                self._take(part)
        with step(f"  [{total}/{total}] starting Python and importing the engine"):
            self._run([str(self.python), "-c", self.recipe.smoke])
        shutil.rmtree(self.folder / "tmp")

    def _take(self, part: Step) -> None:
        if part.pip:
            lock = str(self.folder / "lock.txt")
            words = [lock if word == "{lock}" else word for word in part.pip]
            # The pip that is here works on the Python that is there: one pip, whose behaviour is known.
            self._run([sys.executable, "-m", "pip", "--python", str(self.python), *words])
            return
        standin = self.recipe.standins / part.standin
        if part.prepend:
            target = self._site_packages() / part.to
            target.write_text(
                standin.read_text(encoding="utf-8") + target.read_text(encoding="utf-8"), encoding="utf-8"
            )
        else:
            ignore = shutil.ignore_patterns("__pycache__")
            shutil.copytree(standin, self._site_packages() / part.copy, ignore=ignore)

    def _site_packages(self) -> Path:
        return next((self.folder / "lib").glob("python3*/site-packages"))

    def _run(self, command: list[str]) -> None:
        """Run `command`, its output into the log.

        Raises:
            BuildError: it exits with something else than 0; the message ends with the log's last lines.
        """
        environment = {k: v for k, v in os.environ.items() if k not in FOREIGN} | self.recipe.environment
        environment |= {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1"}
        if (self.folder / "tmp").is_dir():  # pip unpacks where the space was checked, not in a /tmp that may be small
            environment["TMPDIR"] = str(self.folder / "tmp")
        with self.log.open("a", encoding="utf-8") as log:
            log.write(f"$ {' '.join(command)}\n")
            log.flush()
            status = subprocess.run(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, check=False
            ).returncode
        if status:
            lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
            last = [line for line in lines if not line.startswith("WARNING:")][-12:]
            said = f"{self.recipe.engine}: a step failed with exit status {status}; the log ends with"
            raise BuildError("\n".join([said, *last, self._advice()]))

    def _advice(self) -> str:
        return (
            f"\nThe whole log: {self.log}\n"
            "If pip found no torch with +cpu in its version, it doesn't know PyTorch's CPU builds. Name their index:\n"
            f"    PIP_EXTRA_INDEX_URL={CPU_INDEX} make engines\n"
            "If it found nothing at all, there is no network. Without this engine the rest works: make demo ENGINES=hf"
        )

    def _mark_complete(self) -> None:
        marker = self.folder / MARKER
        text = json.dumps({"engine": self.recipe.engine, "version": self.recipe.version, "digest": self.recipe.digest})
        temporary = marker.with_suffix(".tmp")
        temporary.write_text(text + "\n", encoding="utf-8")
        temporary.rename(marker)


def check_free_space(environments: Sequence[Environment]) -> None:
    """Before a byte is downloaded: is there room in the cache folder for those of `environments` that are missing?

    Raises:
        BuildError: there isn't; the message says how much is there and how much is needed.
    """
    missing = [environment for environment in environments if not environment.ready]
    if not missing:
        return
    engines = ", ".join(environment.recipe.engine for environment in missing)
    needed_gb = sum(environment.recipe.disk_gb for environment in missing)
    root = missing[0].root
    root.mkdir(parents=True, exist_ok=True)
    free_gb = shutil.disk_usage(root).free / 1e9
    if free_gb < needed_gb:
        raise BuildError(
            f"{engines}: not enough space in {root}: {free_gb:.1f} GB free, {needed_gb:.1f} GB needed. Free some, or "
            "set XDG_CACHE_HOME to a folder on a larger disk. Without this the rest works: make demo ENGINES=hf"
        )


def clean(root: Path) -> None:
    """Remove every environment under `root`, of any recipe, with its log; one that is being built is waited for."""
    for lock in sorted(root.glob("*.lock")):
        folder = lock.with_suffix("")
        with locked(lock, waiting=lambda folder=folder: say(f"{folder} is being built, waiting")):  # type: ignore[misc]
            if folder.exists():
                with step(f"removing {folder}"):
                    shutil.rmtree(folder)
            lock.with_suffix(".log").unlink(missing_ok=True)
            lock.unlink()
