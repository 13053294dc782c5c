"""The contract: what a KV cache looks like in memory, and how to get from one look to another.

`Geometry` and `Extent` say what is held, a `Layout` how its bytes lie, a `Pool` where they are, a `View` which tokens;
`convert` copies from one view to another. Needs no torch (the reference imports it when it is asked to run).
"""

from kvlingua.layouts.convert import convert
from kvlingua.layouts.dtypes import DTYPES, ITEMSIZE
from kvlingua.layouts.errors import KVLinguaError, LayoutError
from kvlingua.layouts.formats import FORMATS, format
from kvlingua.layouts.geometry import Extent, Geometry, Plane, Rope
from kvlingua.layouts.layout import Layout
from kvlingua.layouts.memory import Buffer
from kvlingua.layouts.view import Pool, View

__all__ = [
    "DTYPES",
    "FORMATS",
    "ITEMSIZE",
    "Buffer",
    "Extent",
    "Geometry",
    "KVLinguaError",
    "Layout",
    "LayoutError",
    "Plane",
    "Pool",
    "Rope",
    "View",
    "convert",
    "format",
]
