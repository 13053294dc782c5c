"""Building environments, with recipes that install nothing: real virtual environments, real processes."""

import os
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from engines.environment import MARKER, BuildError, Environment, check_free_space, clean
from engines.lock import locked
from engines.recipe import Recipe, Step


def recipe(standins: Path, *steps: Step, smoke: str = "pass", disk_gb: float = 0.001) -> Recipe:
    return Recipe("toy", "1.0", disk_gb, steps, "", smoke, {"TOY": "yes"}, standins)


@pytest.fixture
def standins(tmp_path: Path) -> Path:
    folder = tmp_path / "standins"
    (folder / "kernel").mkdir(parents=True)
    (folder / "kernel" / "__init__.py").write_text("answer = 42\n")
    (folder / "before.py").write_text("EARLY = True\n")
    return folder


def test_build_takes_every_step(tmp_path: Path, standins: Path) -> None:
    steps = (
        Step("a command of pip", pip=("list",)),
        Step("a stand-in", copy="kernel"),
        Step("a patch", prepend="before.py", to="kernel/__init__.py"),
    )
    smoke = "import kernel, os; assert kernel.answer == 42 and kernel.EARLY and os.environ['TOY'] == 'yes'"
    environment = Environment(recipe(standins, *steps, smoke=smoke), tmp_path / "root")
    assert not environment.ready
    environment.build()
    assert environment.ready
    assert not (environment.folder / "tmp").exists()
    assert f"--python {environment.python} list" in environment.log.read_text()


def test_a_ready_one_is_left_alone(tmp_path: Path, standins: Path) -> None:
    environment = Environment(recipe(standins), tmp_path / "root")
    environment.build()
    (environment.folder / "mine").touch()
    environment.build()
    assert (environment.folder / "mine").exists()


def test_an_incomplete_one_is_built_anew(tmp_path: Path, standins: Path, capsys: pytest.CaptureFixture[str]) -> None:
    environment = Environment(recipe(standins), tmp_path / "root")
    environment.build()
    (environment.folder / MARKER).unlink()
    (environment.folder / "left by a killed build").touch()
    assert not environment.ready
    environment.build()
    assert environment.ready
    assert not (environment.folder / "left by a killed build").exists()
    assert f"{environment.folder} is incomplete, removing it" in capsys.readouterr().out


def test_one_whose_python_is_gone_is_built_anew(tmp_path: Path, standins: Path) -> None:
    environment = Environment(recipe(standins), tmp_path / "root")
    environment.build()
    environment.python.unlink()
    environment.python.symlink_to("/nowhere/python")
    assert not environment.ready
    environment.build()
    assert environment.ready


def test_too_little_space_is_said_with_numbers(tmp_path: Path, standins: Path) -> None:
    environment = Environment(recipe(standins, disk_gb=1e9), tmp_path / "root")
    with pytest.raises(BuildError, match=r"toy: not enough space in .*root: \d+\.\d GB free, 1000000000\.0 GB needed"):
        environment.build()
    assert not environment.folder.exists()


def test_space_is_checked_for_all_that_is_missing_together(tmp_path: Path, standins: Path) -> None:
    free_gb = shutil.disk_usage(tmp_path).free / 1e9
    first, second = (
        Environment(recipe(standins, smoke=smoke, disk_gb=free_gb * 0.7), tmp_path) for smoke in ("pass", "import this")
    )
    check_free_space([first])
    with pytest.raises(BuildError, match="toy, toy: not enough space"):
        check_free_space([first, second])
    first.build()
    check_free_space([first, second])


def test_a_failed_step_shows_the_log_and_the_way_out(
    tmp_path: Path, standins: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)  # whatever constraints this machine's pip has say it otherwise
    step = Step("no such package", pip=("install", "--no-index", "--find-links", str(standins), "torch==0.0.0+cpu"))
    environment = Environment(recipe(standins, step), tmp_path / "root")
    with pytest.raises(BuildError) as caught:
        environment.build()
    message = str(caught.value)
    assert "No matching distribution found for torch==0.0.0+cpu" in message
    assert "PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu" in message
    assert "make demo ENGINES=hf" in message
    assert str(environment.log) in message
    assert environment.log.is_file()
    assert not environment.folder.exists()


def test_an_engine_that_cannot_be_imported_is_not_ready(tmp_path: Path, standins: Path) -> None:
    environment = Environment(recipe(standins, smoke="import toy_that_is_not_there"), tmp_path / "root")
    with pytest.raises(BuildError, match="No module named 'toy_that_is_not_there'"):
        environment.build()
    assert not environment.ready
    assert not environment.folder.exists()


def test_the_callers_import_path_does_not_leak(tmp_path: Path, standins: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(standins))
    environment = Environment(recipe(standins, smoke="import kernel"), tmp_path / "root")
    with pytest.raises(BuildError, match="No module named 'kernel'"):
        environment.build()


def test_two_builders_build_once(tmp_path: Path, standins: Path) -> None:
    """Through one lock: the second finds the first one's work."""
    counter = tmp_path / "counter"
    smoke = f"import time; open({str(counter)!r}, 'a').write('x'); time.sleep(0.5)"
    environment = Environment(recipe(standins, smoke=smoke), tmp_path / "root")
    builders = [threading.Thread(target=environment.build) for _ in range(2)]
    for builder in builders:
        builder.start()
    for builder in builders:
        builder.join()
    assert environment.ready
    assert counter.read_text() == "x"


def test_a_killed_builder_leaves_no_lock(tmp_path: Path, standins: Path) -> None:
    environment = Environment(recipe(standins), tmp_path / "root")
    holder = (
        "import sys, time; from pathlib import Path; from engines.lock import locked\n"
        "with locked(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    lock = environment.root / f"{environment.name}.lock"
    with subprocess.Popen(
        [sys.executable, "-c", holder, str(lock)], cwd=Path(__file__).parents[2], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        builder = threading.Thread(target=environment.build)
        builder.start()
        time.sleep(0.5)
        assert not environment.folder.exists()  # it waits
        process.kill()
        builder.join()
    assert environment.ready


def test_a_lock_whose_file_was_removed_is_taken_again(tmp_path: Path) -> None:
    """The one that waits gets the lock on a file which the one before it has removed; a third must not get in."""
    path = tmp_path / "lock"
    inside: list[str] = []

    def second() -> None:
        with locked(path):
            inside.append("second in")
            time.sleep(0.5)
            inside.append("second out")

    waiter = threading.Thread(target=second)
    with locked(path):
        waiter.start()
        time.sleep(0.2)
        path.unlink()
    time.sleep(0.2)
    with locked(path):
        inside.append("third in")
    waiter.join()
    assert inside == ["second in", "second out", "third in"]


def test_clean_removes_every_digest(tmp_path: Path, standins: Path) -> None:
    root = tmp_path / "root"
    first = Environment(recipe(standins), root)
    second = Environment(replace(first.recipe, smoke="import this"), root)
    first.build()
    second.build()
    assert first.folder != second.folder
    clean(root)
    assert list(root.iterdir()) == []


def test_clean_without_anything_to_remove(tmp_path: Path) -> None:
    clean(tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()
