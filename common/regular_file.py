"""Files that somebody else names: read if they are regular ones. A FIFO would keep us waiting for who writes to it."""

import errno
import os
import stat


def only_regular(path: str, flags: int) -> int:
    """The opener of an `open` that never waits. Raises OSError, also for what is no regular file."""
    descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY)
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    raise OSError(errno.EINVAL, "it is no regular file", path)
