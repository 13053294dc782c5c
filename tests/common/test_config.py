"""Arguments beat variables beat the file; nothing unknown passes."""

import os
from pathlib import Path

import pytest

from kvlingua.common.config import Config
from kvlingua.common.errors import ConfigError
from kvlingua.common.stores.file_store import folder_of


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the machine's user has configured."""
    for name in [name for name in os.environ if name.startswith("KVLINGUA_") or name == "XDG_CACHE_HOME"]:
        monkeypatch.delenv(name)


def test_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    config = Config.resolve()
    assert config.url == "file:///home/somebody/.cache/kvlingua/store"
    assert config.fingerprint_dir == Path("/home/somebody/.cache/kvlingua/fingerprints")
    assert (config.chunk_tokens, config.max_bytes, config.queue_bytes) == (64, 32 << 30, 1 << 30)
    assert set(config.sources().values()) == {"default"}
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert Config.resolve().url == "file:///cache/kvlingua/store"


def test_the_default_store_lies_in_any_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/a%41 #b?c")
    assert folder_of(Config.resolve().url) == Path("/a%41 #b?c/kvlingua/store")


def test_arguments_beat_variables_beat_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "kvlingua.toml"
    file.write_text('chunk_tokens = 16\nmax_bytes = "1GiB"\nrole = "producer"\nthreads = 3\n')
    monkeypatch.setenv("KVLINGUA_CONFIG", str(file))
    monkeypatch.setenv("KVLINGUA_CHUNK_TOKENS", "32")
    monkeypatch.setenv("KVLINGUA_MAX_BYTES", "2GiB")
    monkeypatch.setenv("KVLINGUA_THREADS", "")
    config = Config.resolve(chunk_tokens=128, url=None)
    assert (config.chunk_tokens, config.max_bytes, config.role, config.threads) == (128, 2 << 30, "producer", 3)
    sources = config.sources()
    assert sources["chunk_tokens"] == "argument chunk_tokens"
    assert sources["max_bytes"] == "variable KVLINGUA_MAX_BYTES"
    assert sources["role"] == f"file {file}"
    assert sources["url"] == "default"


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("4096", 4096),
        ("1KiB", 1024),
        ("1.5 MiB", 3 << 19),
        ("32GiB", 32 << 30),
        ("2gb", 2 * 10**9),
        ("1TiB", 1 << 40),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert Config.resolve(max_bytes=text).max_bytes == size


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"chunk_token": 3}, "argument chunk_token: unknown key 'chunk_token'; did you mean 'chunk_tokens'?"),
        ({"xyz": 3}, "argument xyz: unknown key 'xyz'; known keys: chunk_tokens, fingerprint_dir"),
        ({"chunk_tokens": 0}, "argument chunk_tokens: chunk_tokens can't be 0"),
        ({"chunk_tokens": True}, "chunk_tokens can't be True"),
        ({"chunk_tokens": 1.5}, "chunk_tokens can't be 1.5"),
        ({"max_bytes": "many"}, "a size is a number of bytes, or one with a unit such as 512MiB or 32GiB"),
        ({"max_bytes": "9" * 500}, "a size is a number of bytes"),
        ({"max_bytes": "-1"}, "a size is a number of bytes"),
        ({"max_bytes": -1}, "max_bytes can't be -1"),
        ({"load_timeout_s": float("inf")}, "load_timeout_s can't be inf"),
        ({"load_timeout_s": float("nan")}, "load_timeout_s can't be nan"),
        ({"lookup_timeout_s": 0}, "lookup_timeout_s can't be 0"),
        ({"role": "all"}, "'both', 'producer' or 'consumer'"),
        ({"log_level": "loud"}, "log_level can't be 'loud'"),
        ({"url": ""}, "url can't be ''"),
        ({"verify": False}, "unknown key 'verify'"),
    ],
)
def test_what_cannot_be_right_is_one_line(arguments: dict[str, object], message: str) -> None:
    for make in (Config.resolve, Config):
        with pytest.raises(ConfigError) as refused:
            make(**arguments)  # type: ignore[arg-type]
        assert message in str(refused.value)
        assert "\n" not in str(refused.value)


def test_the_source_of_an_error_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KVLINGUA_THREAD", "2")
    with pytest.raises(ConfigError, match="variable KVLINGUA_THREAD: unknown key 'thread'; did you mean 'threads'"):
        Config.resolve()
    monkeypatch.delenv("KVLINGUA_THREAD")
    file = tmp_path / "kvlingua.toml"
    monkeypatch.setenv("KVLINGUA_CONFIG", str(file))
    for text, message in (
        (None, "can't be read: No such file"),
        ("threads = many", "is not TOML"),
        ("\x00", "is not TOML"),
        ("treads = 1", "file .*: unknown key 'treads'; did you mean 'threads'"),
        ("[threads]\na = 1", "file .*: threads can't be {'a': 1}"),
        ("#" * (2 << 20), "larger than"),
    ):
        if text is not None:
            file.write_text(text)
        with pytest.raises(ConfigError, match=message):
            Config.resolve()


def test_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Config().threads = 2  # type: ignore[misc]


def test_only_a_regular_file_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", Path("/dev/zero"), tmp_path):
        monkeypatch.setenv("KVLINGUA_CONFIG", str(path))
        with pytest.raises(ConfigError, match="which can't be read: it is no regular file"):
            Config.resolve()


def test_home_is_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    assert Config.resolve(metrics_dir="~/metrics").metrics_dir == Path("/home/somebody/metrics")
    for key in ("metrics_dir", "fingerprint_dir"):
        with pytest.raises(ConfigError, match=rf"argument {key}: {key} can't be '~nosuch/x': there is no home folder"):
            Config.resolve(**{key: "~nosuch/x"})
