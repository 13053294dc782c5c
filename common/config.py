"""One configuration for all engines: arguments beat KVLINGUA_* variables beat the TOML file that KVLINGUA_CONFIG names.

The only file that reads settings from the environment.
"""

import difflib
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    PrivateAttr,
    ValidationError,
    ValidationInfo,
    model_validator,
)

from kvlingua.common.errors import ConfigError
from kvlingua.common.regular_file import only_regular
from kvlingua.layouts.cache_home import cache_home

PREFIX = "KVLINGUA_"
FILE_VARIABLE = "KVLINGUA_CONFIG"
_MAX_FILE_BYTES = 1 << 20
_UNITS = {"": 1, "b": 1} | {
    f"{letter}{end}": base**power for power, letter in enumerate("kmgt", 1) for end, base in (("ib", 1024), ("b", 1000))
}
_SIZE = re.compile(r"([0-9]{1,18}(?:\.[0-9]{1,18})?)\s*([A-Za-z]*)")


def _number(value: object) -> object:
    if isinstance(value, bool):  # to pydantic, true is the number 1
        raise ValueError("a number is expected")
    return value


def _size(value: object) -> object:
    if not isinstance(value, str):
        return _number(value)
    match = _SIZE.fullmatch(value.strip())
    if match is None or match[2].lower() not in _UNITS:
        raise ValueError("a size is a number of bytes, or one with a unit such as 512MiB or 32GiB")
    return int(float(match[1]) * _UNITS[match[2].lower()])


def _path(value: object) -> object:
    if not isinstance(value, (str, Path)):
        return value
    path = os.path.expanduser(value)
    if path.startswith("~"):
        raise ValueError(f"there is no home folder {Path(path).parts[0]!r}; a folder of that name is ./{path}")
    return path


def _lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


Count = Annotated[int, BeforeValidator(_number), Field(ge=1, le=1 << 16)]
Seconds = Annotated[float, BeforeValidator(_number), Field(gt=0, le=1e6)]
Bytes = Annotated[int, BeforeValidator(_size), Field(ge=0, le=1 << 60)]
Folder = Annotated[Path, BeforeValidator(_path)]


class Config(BaseModel):
    """What a user may set. Frozen; an unknown key, or a value that can't be right, is a ConfigError."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    url: str = Field(default_factory=lambda: (cache_home() / "store").absolute().as_uri(), min_length=1)
    """The store: file://<folder>, memory://."""
    chunk_tokens: Count = 64
    """Tokens per stored chunk; engines share only at the same number."""
    layers_per_shard: Count | None = None
    """Layers per shard; all by default. Where pipeline stages write to one store, a number that divides the first layer
    of each; engines share only at the same number."""
    max_bytes: Bytes = 32 << 30
    """What the store may hold."""
    queue_bytes: Bytes = 1 << 30
    """What may wait to be written; a chunk that doesn't fit is dropped and counted."""
    lookup_timeout_s: Seconds = 0.5
    load_timeout_s: Seconds = 30.0
    role: Literal["both", "producer", "consumer"] = "both"
    """A producer only stores, a consumer only loads."""
    threads: Count = 1
    """Threads that copy between layouts."""
    metrics_dir: Folder | None = None
    """Where each process writes its metrics as a text file; nowhere by default."""
    fingerprint_dir: Folder = Field(default_factory=lambda: cache_home() / "fingerprints")
    """Where the digests of weight files are kept; private to the user."""
    log_level: Annotated[Literal["debug", "info", "warning", "error", "critical"], BeforeValidator(_lower)] = "info"

    _sources: dict[str, str] = PrivateAttr(default_factory=dict)

    @classmethod
    def resolve(cls, **arguments: object) -> "Config":
        """The configuration of this process; an argument that is None counts as not given. Raises ConfigError."""
        values: dict[str, object] = {}
        sources: dict[str, str] = {}
        given = {key: value for key, value in arguments.items() if value is not None}
        named = {key: f"argument {key}" for key in given}
        for layer, names in (_from_file(os.environ.get(FILE_VARIABLE)), _from_environment(os.environ), (given, named)):
            values |= layer
            sources |= names
        config = cls.model_validate(values, context=sources)
        config._sources.update(sources)
        return config

    def sources(self) -> dict[str, str]:
        """Where each value came from: an argument, a variable, a file, or `default`."""
        given = {key: self._sources.get(key, f"argument {key}") for key in self.model_fields_set}
        return {key: given.get(key, "default") for key in type(self).model_fields}

    @model_validator(mode="wrap")
    @classmethod
    def _explain(cls, values: Any, handler: ModelWrapValidatorHandler["Config"], info: ValidationInfo) -> "Config":
        try:
            return handler(values)
        except ValidationError as error:
            sources = info.context if isinstance(info.context, dict) else {}
            raise ConfigError("; ".join(_sentence(cls, one, sources) for one in error.errors())) from None


def _sentence(cls: type[Config], error: Mapping[str, Any], sources: Mapping[str, str]) -> str:
    key = str(error["loc"][0]) if error["loc"] else "configuration"
    source = sources.get(key, f"argument {key}")
    if error["type"] == "extra_forbidden":
        return f"{source}: unknown key {key!r}{_nearest(key, cls)}"
    message = error["msg"].removeprefix("Value error, ")
    return f"{source}: {key} can't be {error['input']!r:.80}: {message[:1].lower()}{message[1:]}"


def _nearest(key: str, cls: type[Config]) -> str:
    known = sorted(cls.model_fields)
    near = difflib.get_close_matches(key.lower(), known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else f"; known keys: {', '.join(known)}"


def _from_environment(environment: Mapping[str, str]) -> tuple[dict[str, object], dict[str, str]]:
    values: dict[str, object] = {}
    names: dict[str, str] = {}
    for variable, value in environment.items():
        if variable.startswith(PREFIX) and variable != FILE_VARIABLE and value:  # an empty variable counts as not set
            key = variable.removeprefix(PREFIX).lower()
            values[key], names[key] = value, f"variable {variable}"
    return values, names


def _from_file(name: str | None) -> tuple[dict[str, object], dict[str, str]]:
    if not name:
        return {}, {}
    try:
        with open(os.path.expanduser(name), "rb", opener=only_regular) as file:
            data = file.read(_MAX_FILE_BYTES + 1)
        if len(data) > _MAX_FILE_BYTES:
            raise ConfigError(f"{FILE_VARIABLE} names {name}, which is larger than {_MAX_FILE_BYTES} bytes")
        values = tomllib.loads(data.decode())
    except OSError as error:
        raise ConfigError(f"{FILE_VARIABLE} names {name}, which can't be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{FILE_VARIABLE} names {name}, which is not TOML: {error}") from None
    return values, dict.fromkeys(values, f"file {name}")
