"""A file system in one process: everything is done in another folder, nothing is cached. Standard library only.

    python fuse_server.py MOUNT BEHIND      mounts, prints "ready", serves until it is killed

A file `.faults` in BEHIND, JSON, makes calls on files go wrong: {name: {"open": errno, "read": errno, "end": byte at
which the file ends when it is read, "flip": byte in which a bit is flipped in the first read, "stall": seconds that a
read takes, unless the file says otherwise before}}.

Speaks the kernel's FUSE protocol (linux/fuse.h, version 7.31) over /dev/fuse directly, so no library is needed. For
tests: one request after the other but for reads, each of which has a thread, so that one that stalls holds up no
other; no links, no devices.
"""

import ctypes
import errno
import json
import os
import stat
import struct
import sys
import threading
import time
from collections.abc import Callable

_IN = struct.Struct("<IIQQIIII")
_SETATTR = struct.Struct("<IIQQQQQQIIIIIIII")
_MAX_WRITE = 1 << 17
_DIRECT_IO = 1
_READ = 15


class Problem(Exception):
    """A request that is answered with an error number."""


class Passthrough:
    """Node numbers for paths, file handles for descriptors."""

    def __init__(self, behind: str) -> None:
        self.behind = behind
        self.paths = {1: behind}
        self.flipped: set[str] = set()
        self.nodes = {behind: 1}
        self.operations: dict[int, Callable[[int, bytes], bytes]] = {
            1: self.lookup,
            3: self.getattr,
            4: self.setattr,
            9: self.mkdir,
            10: lambda node, body: self.remove(os.unlink, node, body),
            11: lambda node, body: self.remove(os.rmdir, node, body),
            12: lambda node, body: self.rename(node, body, 8),
            14: self.open,
            _READ: self.read,
            16: self.write,
            17: self.statfs,
            18: self.release,
            20: lambda node, body: b"",  # fsync
            25: lambda node, body: b"",  # flush, at close
            26: self.init,
            27: lambda node, body: struct.pack("<QII", 0, 0, 0),  # opendir
            28: self.readdir,
            29: lambda node, body: b"",  # releasedir
            34: lambda node, body: b"",  # access
            35: self.create,
            45: lambda node, body: self.rename(node, body, 16),
        }

    def answer(self, request: bytes) -> bytes | None:
        """The reply to one request; None where none is due (forget, interrupt)."""
        _, operation, unique, node = _IN.unpack_from(request)[:4]
        if operation in (2, 36, 42):
            return None
        error, reply = 0, b""
        try:
            if operation not in self.operations:
                raise Problem(errno.ENOSYS)
            if node not in self.paths and operation != 26:  # init is about no node
                raise Problem(errno.ESTALE)
            reply = self.operations[operation](node, request[_IN.size :])
        except OSError as problem:
            error = problem.errno or errno.EIO
        except Problem as problem:
            error = problem.args[0]
        return struct.pack("<IiQ", 16 + len(reply), -error, unique) + reply

    def init(self, node: int, body: bytes) -> bytes:
        readahead = struct.unpack_from("<4I", body)[2]
        return struct.pack("<4IHHIIHHII6I", 7, 31, readahead, 0, 0, 0, _MAX_WRITE, 1, 0, 0, 0, 0, *[0] * 6)

    def lookup(self, node: int, body: bytes) -> bytes:
        return self.entry(self.child(node, body))

    def getattr(self, node: int, body: bytes) -> bytes:
        flags, _, handle = struct.unpack_from("<IIQ", body)
        return self.attributes(os.fstat(handle) if flags & 1 else os.lstat(self.paths[node]))

    def setattr(self, node: int, body: bytes) -> bytes:
        values = _SETATTR.unpack_from(body)
        valid, handle, size, atime, mtime = values[0], values[2], values[3], values[5], values[6]
        target: int | str = handle if valid & 64 else self.paths[node]
        if valid & 1:
            os.chmod(target, stat.S_IMODE(values[11]))
        if valid & 8:
            os.truncate(target, size)
        if valid & (16 | 32):
            status = os.stat(target)
            os.utime(
                target,
                ns=(
                    atime * 10**9 + values[8] if valid & 16 else status.st_atime_ns,
                    mtime * 10**9 + values[9] if valid & 32 else status.st_mtime_ns,
                ),
            )
        return self.attributes(os.stat(target))

    def mkdir(self, node: int, body: bytes) -> bytes:
        mode, _ = struct.unpack_from("<II", body)
        path = self.child(node, body[8:])
        os.mkdir(path, stat.S_IMODE(mode))
        return self.entry(path)

    def remove(self, how: Callable[[str], None], node: int, body: bytes) -> bytes:
        path = self.child(node, body)
        how(path)
        self.nodes.pop(path, None)  # the node keeps its path: the kernel may still ask for it, and finds nothing
        return b""

    def rename(self, node: int, body: bytes, names: int) -> bytes:
        folder = struct.unpack_from("<Q", body)[0]
        old, new = body[names:].split(b"\0")[:2]
        source, target = self.child(node, old), self.child(folder, new)
        os.rename(source, target)
        moved = self.nodes.pop(source, None)
        if moved is not None:
            self.nodes[target], self.paths[moved] = moved, target
        return b""

    def open(self, node: int, body: bytes) -> bytes:
        flags = struct.unpack_from("<I", body)[0]
        self.fail("open", self.faults(self.paths[node]))
        return struct.pack("<QII", os.open(self.paths[node], flags & ~os.O_NOFOLLOW | os.O_CLOEXEC), _DIRECT_IO, 0)

    def create(self, node: int, body: bytes) -> bytes:
        flags, mode = struct.unpack_from("<II", body)
        path = self.child(node, body[16:])
        handle = os.open(path, flags | os.O_CREAT | os.O_CLOEXEC, stat.S_IMODE(mode))
        return self.entry(path) + struct.pack("<QII", handle, _DIRECT_IO, 0)

    def read(self, node: int, body: bytes) -> bytes:
        handle, offset, size = struct.unpack_from("<QQI", body)
        path = self.paths[node]
        faults = self.faults(path)
        self.fail("read", faults)
        stalled_until = time.monotonic() + faults.get("stall", 0)
        while time.monotonic() < stalled_until and "stall" in self.faults(path):
            time.sleep(0.02)
        data = bytearray(os.pread(handle, min(size, max(0, faults.get("end", offset + size) - offset)), offset))
        place = faults.get("flip", -1) - offset
        if 0 <= place < len(data) and path not in self.flipped:
            self.flipped.add(path)
            data[place] ^= 4
        return bytes(data)

    def write(self, node: int, body: bytes) -> bytes:
        handle, offset, size = struct.unpack_from("<QQI", body)
        return struct.pack("<II", os.pwrite(handle, body[40 : 40 + size], offset), 0)

    def release(self, node: int, body: bytes) -> bytes:
        os.close(struct.unpack_from("<Q", body)[0])
        return b""

    def statfs(self, node: int, body: bytes) -> bytes:
        found = os.statvfs(self.paths[node])
        counts = found.f_blocks, found.f_bfree, found.f_bavail, found.f_files, found.f_ffree
        return struct.pack("<5Q4I6I", *counts, found.f_bsize, found.f_namemax, found.f_frsize, *[0] * 7)

    def readdir(self, node: int, body: bytes) -> bytes:
        _, offset, size = struct.unpack_from("<QQI", body)
        reply = b""
        for index, name in enumerate(sorted(os.listdir(self.paths[node]))):
            encoded = os.fsencode(name)
            kind = stat.S_IFMT(os.lstat(os.path.join(self.paths[node], name)).st_mode) >> 12
            item = struct.pack("<QQII", 1 << 32 | index, index + 1, len(encoded), kind) + encoded
            item += b"\0" * (-len(item) % 8)
            if index >= offset:
                if len(reply) + len(item) > size:
                    break
                reply += item
        return reply

    def faults(self, path: str) -> dict[str, int]:
        """What shall go wrong with a file."""
        try:
            with open(os.path.join(self.behind, ".faults"), "rb") as file:
                found: dict[str, int] = json.load(file).get(os.path.basename(path), {})
        except FileNotFoundError:
            return {}
        return found

    def fail(self, operation: str, faults: dict[str, int]) -> None:
        if operation in faults:
            raise Problem(faults[operation])

    def child(self, node: int, name: bytes) -> str:
        return os.path.join(self.paths[node], os.fsdecode(name.split(b"\0")[0]))

    def entry(self, path: str) -> bytes:
        """A node for a path; neither the name nor the attributes may be cached."""
        status = os.lstat(path)
        if path not in self.nodes:
            self.nodes[path] = len(self.paths) + 1
            self.paths[self.nodes[path]] = path
        return struct.pack("<QQQQII", self.nodes[path], 0, 0, 0, 0, 0) + self.attributes(status)[16:]

    def attributes(self, status: os.stat_result) -> bytes:
        times = [divmod(ns, 10**9) for ns in (status.st_atime_ns, status.st_mtime_ns, status.st_ctime_ns)]
        return struct.pack("<QII", 0, 0, 0) + struct.pack(
            "<6Q10I",
            status.st_ino,
            status.st_size,
            status.st_blocks,
            *[seconds for seconds, _ in times],
            *[rest for _, rest in times],
            status.st_mode,
            status.st_nlink,
            status.st_uid,
            status.st_gid,
            0,
            4096,
            0,
        )


def main(mount: str, behind: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    options = f"fd={device},rootmode=40000,user_id={os.getuid()},group_id={os.getgid()}"
    if libc.mount(b"kvlingua-test", os.fsencode(mount), b"fuse", 6, options.encode()) != 0:
        print(os.strerror(ctypes.get_errno()), flush=True)
        return
    server = Passthrough(behind)
    print("ready", flush=True)
    while True:
        try:
            request = os.read(device, _MAX_WRITE + 4096)
        except InterruptedError:
            continue
        except OSError as error:
            if error.errno == errno.ENOENT:  # the request was taken back
                continue
            return  # unmounted
        if struct.unpack_from("<I", request, 4)[0] == _READ:
            threading.Thread(target=serve, args=(server, device, request), daemon=True).start()
        else:
            serve(server, device, request)


def serve(server: Passthrough, device: int, request: bytes) -> None:
    reply = server.answer(request)
    if reply is not None:
        try:
            os.write(device, reply)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENODEV):  # nobody waits for this answer any more
                raise


if __name__ == "__main__":
    main(*sys.argv[1:])
