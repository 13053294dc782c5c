"""Objects of a batch on their way into a folder."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class Incoming:
    """An object that has no file yet. index: in its batch. time_ns: the time of change that its file shall get."""

    index: int
    namespace: str
    name: str
    nbytes: int
    time_ns: int


@dataclass(frozen=True, slots=True)
class NewFile:
    """The file `temporary` in an open folder, of the object's size, that waits for its bytes."""

    incoming: Incoming
    folder: int
    temporary: str


Writer: TypeAlias = Callable[[Sequence[NewFile]], Sequence[OSError | None]]
"""Fills files and gives them their times; what went wrong, for each. After the first that fails it needn't go on."""
