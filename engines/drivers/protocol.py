"""What a driver and its parent say to each other, and the loop of the engine's side.

One JSON object per line. The parent writes commands to the driver's standard input, the driver answers on its standard
output, which nothing else writes to: the engine's own output, that of its child processes too, goes to standard error.

    -> {"event": "ready", "version": ..., "page": ..., "seconds": ...}       or {"event": "failed", "error": ...}
    <- {"id": 1, "command": "generate", "asks": [Ask, ...]}                  -> {"id": 1, "reply": Reply}
    <- {"id": 2, "command": "call", "method": ..., "arguments": {...}}       -> {"id": 2, "value": ...}
    <- {"id": 3, "command": "exit"}                                          -> {"id": 3}

A command that fails is answered with {"id": ..., "error": ...}; the driver lives on.
"""

import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol, TextIO

Role = Literal["both", "producer", "consumer"]


@dataclass(frozen=True)
class Launch:
    """How an engine is to be started.

    `cache`: with kvlingua, or without any of it (the cold reference). `page`: tokens per block or page of the engine.
    `config`: kvlingua's configuration as arguments. `engine`: the engine's own keyword arguments, which win.
    """

    model: str
    cache: bool = True
    dtype: str = "float32"
    page: int = 64
    role: Role = "both"
    max_model_len: int = 2048
    config: Mapping[str, Any] = field(default_factory=dict)
    engine: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Ask:
    """A prompt as token ids, to be continued greedily by exactly `max_tokens` tokens. `options` are the engine's
    own."""

    prompt: Sequence[int]
    max_tokens: int = 8
    cache_salt: str | None = None
    extra_key: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Answer:
    """`reused`: tokens of the prompt that the engine says it had (from its own cache or kvlingua). `ttft_s`:
    arrival to first token."""

    tokens: list[int]
    prompt_tokens: int
    reused: int
    ttft_s: float | None = None


@dataclass(frozen=True)
class Reply:
    """The answers, and by how much the engine's own counters grew meanwhile: tokens of the prompts in all, taken from
    kvlingua (`reused`), from the engine's own prefix cache (`local`), and computed. None of the four is got by
    subtraction."""

    answers: list[Answer]
    prompt_tokens: int
    reused: int
    local: int
    computed: int
    seconds: float

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Reply":
        return cls(**{**value, "answers": [Answer(**answer) for answer in value["answers"]]})


@dataclass(frozen=True)
class Ready:
    version: str
    page: int
    seconds: float


class Engine(Protocol):
    """An engine that is up. `page` is what it really uses."""

    version: str
    page: int

    def generate(self, asks: Sequence[Ask]) -> Reply:
        """Answer all `asks`, which are handed to the engine together."""
        ...

    def call(self, method: str, arguments: Mapping[str, Any]) -> object:
        """Something only this engine knows. LookupError: no such method."""
        ...

    def close(self) -> None:
        """Shut the engine down in good order."""
        ...


def serve(open_engine: Callable[[Launch], Engine]) -> None:
    """The main function of a driver: start what the first argument (a Launch as JSON) says, then answer until
    `exit` or end of input."""
    channel = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)  # whatever the engine prints from here on is log
    start = time.monotonic()
    try:
        engine = open_engine(Launch(**json.loads(sys.argv[1])))
    except Exception as error:  # noqa: BLE001  the parent gets one line, the log the traceback
        traceback.print_exc()
        _say(channel, {"event": "failed", "error": f"{type(error).__name__}: {error}"})
        sys.exit(1)
    _say(channel, {"event": "ready", **asdict(Ready(engine.version, engine.page, time.monotonic() - start))})
    try:
        for line in sys.stdin:
            command = json.loads(line)
            if command["command"] == "exit":
                break
            try:
                _say(channel, {"id": command["id"], **_answer(engine, command)})
            except Exception as error:  # noqa: BLE001  one failed command doesn't end the driver
                traceback.print_exc()
                _say(channel, {"id": command["id"], "error": f"{type(error).__name__}: {error}"})
        else:
            command = {"id": None}
    finally:
        engine.close()
    _say(channel, {"id": command["id"]})


def _answer(engine: Engine, command: Mapping[str, Any]) -> dict[str, Any]:
    if command["command"] == "generate":
        return {"reply": asdict(engine.generate([Ask(**ask) for ask in command["asks"]]))}
    if command["command"] == "call":
        return {"value": engine.call(command["method"], command.get("arguments", {}))}
    raise LookupError(f"no command {command['command']!r}; there are generate, call, exit")


def _say(channel: TextIO, message: Mapping[str, Any]) -> None:
    channel.write(json.dumps(message) + "\n")
    channel.flush()
