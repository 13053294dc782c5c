"""The root of kvlingua's exceptions, and what this package raises. The whole tree is drawn in common/errors.py."""


class KVLinguaError(Exception):
    """The root: `except KVLinguaError` catches everything kvlingua raises on purpose."""


class LayoutError(KVLinguaError):
    """A layout, a buffer, a block table or a copy that can't be right. Nothing was written."""
