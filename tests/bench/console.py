"""The console of a guest, with the time at which each line came."""

import re
import socket
import threading
import time

TICK = re.compile(rb"tick (\d+) cpu 0 writes (\d+) checked (\d+) walks \d+ gap-us (\d+)")


class Console:
    """Reads the Unix socket at `path` from the moment that somebody listens there."""

    def __init__(self, path):
        self.path = path
        self.lines = []  # (time in ns, bytes)
        self.error = None
        self._stop = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self):
        while not self._stop:
            with socket.socket(socket.AF_UNIX) as stream:
                try:
                    stream.connect(self.path)
                except OSError:
                    time.sleep(0.0005)
                    continue
                rest = b""
                while not self._stop:
                    try:
                        some = stream.recv(1 << 16)
                    except OSError:
                        return
                    now = time.monotonic_ns()
                    if not some:
                        return
                    *whole, rest = (rest + some).split(b"\n")
                    for line in whole:
                        self.lines.append((now, line))
                        if line.startswith(b"ERROR"):
                            self.error = line.decode()

    def close(self):
        self._stop = True

    def ticks(self):
        """(time in ns, pages written, pages checked, longest gap in us) of each tick so far."""
        found = []
        for at, line in list(self.lines):
            tick = TICK.match(line)
            if tick:
                found.append((at, int(tick[2]), int(tick[3]), int(tick[4])))
        return found

    def wait_ticks(self, count, timeout=120):
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            if self.error:
                raise RuntimeError(f"the guest found damage: {self.error}")
            ticks = self.ticks()
            if len(ticks) >= count:
                return ticks
            time.sleep(0.005)
        raise RuntimeError(f"no {count} ticks at {self.path}: {self.lines[-3:]}")


def pause_ms(source, destination):
    """From the last line at the source to the first at the destination, by the clock of the host."""
    if not source.lines or not destination.lines:
        return None
    return max(0.0, (destination.lines[0][0] - source.lines[-1][0]) / 1e6)


def rate(ticks, begin, end):
    """Pages written and pages checked a second between two times (ns)."""
    inside = [tick for tick in ticks if begin <= tick[0] <= end]
    if len(inside) < 2:
        return None
    seconds = (inside[-1][0] - inside[0][0]) / 1e9
    return ((inside[-1][1] - inside[0][1]) / seconds, (inside[-1][2] - inside[0][2]) / seconds)
