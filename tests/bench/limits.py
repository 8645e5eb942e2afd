"""What the machine can do: a minimal writer and reader through one pipe, and a copy in memory."""

import ctypes
import fcntl
import mmap
import os
import time

LIBC = ctypes.CDLL(None, use_errno=True)
SIZE = 400 << 20
PIECE = 128 << 10
HUGE = 2 << 20
F_SETPIPE_SZ = 1031
# linux/mount.h, and the numbers of the calls (the same on every architecture).
FSOPEN, FSCONFIG, FSMOUNT = 430, 431, 432
FSCONFIG_SET_STRING, FSCONFIG_CMD_CREATE = 1, 6
MADV_HUGEPAGE = 14


def huge_tmpfs():
    """A directory descriptor of a tmpfs with huge pages, or None."""
    context = LIBC.syscall(FSOPEN, b"tmpfs", 1)
    if context < 0:
        return None
    LIBC.syscall(FSCONFIG, context, FSCONFIG_SET_STRING, b"huge", b"advise", 0)
    LIBC.syscall(FSCONFIG, context, FSCONFIG_CMD_CREATE, None, None, 0)
    root = LIBC.syscall(FSMOUNT, context, 1, 0)
    os.close(context)
    return root if root >= 0 else None


class Memory:
    """Fresh shared memory of one kind: `small` (a memfd) or `huge` (a tmpfs of huge pages)."""

    def __init__(self, kind, size=SIZE):
        if kind == "huge":
            root = huge_tmpfs()
            if root is None:
                raise OSError("no tmpfs with huge pages")
            self.fd = os.open(f"/proc/self/fd/{root}", os.O_TMPFILE | os.O_RDWR)
            os.close(root)
        else:
            self.fd = os.memfd_create("bench")
        os.ftruncate(self.fd, size)
        self.map = mmap.mmap(self.fd, size)
        if kind == "huge":
            self.map.madvise(MADV_HUGEPAGE)

    def touch(self):
        for at in range(0, len(self.map), 4096):
            self.map[at] = 1
        return self

    def close(self):
        self.map.close()
        os.close(self.fd)


def through_pipe(destination, through_file, source):
    """Seconds that a minimal writer and reader need for SIZE bytes."""
    read, write = os.pipe()
    fcntl.fcntl(write, F_SETPIPE_SZ, 1 << 20)
    view = memoryview(source.map)
    begin = time.monotonic()
    child = os.fork()
    if child == 0:
        os.close(read)
        for at in range(0, SIZE, PIECE):
            piece = view[at:at + PIECE]
            while piece:
                piece = piece[os.write(write, piece):]
        os._exit(0)
    os.close(write)
    at = 0
    into = memoryview(destination.map)
    buffer = memoryview(bytearray(PIECE))
    while at < SIZE:
        if through_file:
            count = os.readv(read, [buffer[:min(PIECE, SIZE - at)]])
            os.pwrite(destination.fd, buffer[:count], at)
        else:
            count = os.readv(read, [into[at:at + PIECE]])
        if count == 0:
            raise OSError("the writer ended")
        at += count
    seconds = time.monotonic() - begin
    os.waitpid(child, 0)
    os.close(read)
    del into, view
    return seconds


def measure(kind):
    """Bytes a second: by pipe into populated memory, by pipe into fresh memory of this kind (the
    better of both ways to fill it), and by a copy in populated memory."""
    source = Memory("huge" if kind == "huge" else "small").touch()
    rates = {}
    populated = Memory(kind).touch()
    rates["pipe into populated"] = SIZE / through_pipe(populated, False, source)
    begin = time.monotonic()
    populated.map[:] = source.map
    rates["memcpy"] = SIZE / (time.monotonic() - begin)
    populated.close()
    ways = []
    for through_file in (False, True):
        fresh = Memory(kind)
        ways.append(SIZE / through_pipe(fresh, through_file, source))
        fresh.close()
    rates["pipe into fresh"] = max(ways)
    source.close()
    return rates
