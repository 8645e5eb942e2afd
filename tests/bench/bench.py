"""migpipe and QEMU, the same guest, alternating on the same machine: see scripts/bench --help."""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

import console
import goals
import limits
from systems import DoesNotEnd, Ours, Qemu

BEAT = "tick-ms=20,beat-us=1000,idle=spin"


class Guest:
    def __init__(self, label, mem, spec, fill_mb, cpus=1):
        self.label, self.mem, self.cpus, self.fill_mb = label, mem, cpus, fill_mb
        self.spec = f"builtin:dirty,{spec},fill-mb={fill_mb},{BEAT}"
        self.command_line = None


GUESTS = {guest.label: guest for guest in [
    Guest("idle", "512M", "pages=64,rate=100,fill=random", 400),
    Guest("hot-1M", "512M", "pages=256,rate=max,fill=random", 400),
    Guest("hot-4M", "512M", "pages=1024,rate=max,fill=random", 400),
    Guest("hot-64M", "512M", "pages=16384,rate=max,fill=random", 300),
    Guest("zeros-4G", "4G", "pages=64,rate=100,fill=zero", 3584),
    Guest("grow-1G", "1G", "pages=64,rate=100,fill=random", 896),
    Guest("grow-4G", "4G", "pages=64,rate=100,fill=random", 3584),
    Guest("untouched-16G", "16G", "pages=64,rate=100,fill=random", 1),
]}
OURS = ["pipe", "exec", "unix", "tcp", "exec zero-copy"]
THEIRS = ["exec", "unix", "tcp", "multifd-2", "multifd-4"]


def one_move(system, guest, channel, options=()):
    """One guest from its boot to its end behind one move."""
    running = system.boot(guest)
    try:
        before = running["console"].wait_ticks(15)
        move = system.move(running, channel, options)
        after = move.destination.wait_ticks(15)
        if move.destination.error:
            raise RuntimeError(move.destination.error)
        settled = before[3][0]
        quiet = console.rate(before, settled, move.begin)
        during = console.rate(before + move.source.ticks()[len(before):], move.begin, move.end)
        return {
            "total_s": move.total,
            "downtime_ms": console.pause_ms(move.source, move.destination),
            "told_downtime_ms": move.downtime,
            "gap_ms": max(tick[3] for tick in after[:3]) / 1e3,
            "sent_bytes": move.sent,
            "cpu_s": move.cpu,
            "work": work_ratio(quiet, during),
            "phases_us": phases(move.report),
        }
    finally:
        system.quit(running)


# What each part of a blackout may take of an idle guest with one vCPU (us): the state of a vCPU takes
# some 150 us to save and as much to load, everything else is a round trip or a pass over a bitmap.
BUDGET_US = {"last_harvest": 300, "last_pages": 500, "state_save": 800, "transfer": 1000, "state_load": 800,
             "go": 1000, "first_instruction": 300}


def phases(report):
    """The parts of our blackout (us), as mig-send's report has them; nothing of QEMU's."""
    downtime = report.get("downtime") or {}
    if not isinstance(downtime, dict):
        return None
    return {name: downtime[f"{name}_ns"] / 1e3 for name in BUDGET_US if downtime.get(f"{name}_ns") is not None} or None


def work_ratio(quiet, during):
    """What the guest did during its move, of what it did before; of hot pages if it has many."""
    if not quiet or not during:
        return None
    index = 0 if quiet[0] > 10_000 else 1
    return during[index] / quiet[index] if quiet[index] else None


def medians(runs):
    found = {}
    for key in runs[0]:
        values = [run[key] for run in runs if run[key] is not None]
        if values and isinstance(values[0], dict):
            found[key] = medians(values)
        else:
            found[key] = statistics.median(values) if values else None
    return found


def measure(systems, guest, rounds, ours, theirs, log):
    """Alternating rounds; the medians of each (system, channel), and every run."""
    runs = {}
    for number in range(rounds):
        for system, channels in zip(systems, (ours, theirs)):
            for channel in channels:
                key = f"{system.name} {channel}"
                if runs.get(key) == "does not end":
                    continue
                try:
                    runs.setdefault(key, []).append(one_move(system, guest, channel))
                except DoesNotEnd:
                    runs[key] = "does not end"
                log(f"{guest.label} {number + 1}/{rounds} {key}")
    table = {key: medians(some) if isinstance(some, list) else some for key, some in runs.items()}
    return {"medians": table, "runs": runs}


def figure(value, digits=1, scale=1.0):
    return "-" if value is None else f"{value * scale:.{digits}f}"


def show(guest, found, out):
    rows = found["medians"]
    fastest = min((row["total_s"] for key, row in rows.items()
                   if key.startswith("QEMU") and isinstance(row, dict)), default=None)
    out(f"\n{guest.label}: {guest.mem}, {guest.spec}")
    out(f"{'':22}{'total ms':>10}{'/ fastest QEMU':>16}{'down ms':>9}{'MiB':>7}{'MiB/s':>8}"
        f"{'CPU s/GiB':>11}{'guest work':>12}")
    for key, row in rows.items():
        if not isinstance(row, dict):
            out(f"{key:22}{row:>10}")
            continue
        mib = row["sent_bytes"] / 2**20
        ratio = row["total_s"] / fastest if fastest else None
        gib = row["sent_bytes"] / 2**30
        per_gib = row["cpu_s"] / gib if row["cpu_s"] and gib > 2**-6 else None
        out(f"{key:22}{figure(row['total_s'], 0, 1e3):>10}{figure(ratio, 2):>16}"
            f"{figure(row['downtime_ms']):>9}{mib:>7.0f}{mib / row['total_s']:>8.0f}"
            f"{figure(per_gib, 2):>11}"
            f"{figure(row['work'], 2):>12}")
    parts = {}
    for key, row in rows.items():
        for name, value in (isinstance(row, dict) and row.get("phases_us") or {}).items():
            parts.setdefault(name, []).append(value)
    if parts:
        out("blackout of migpipe, medians of its channels (us; budget of an idle guest with one vCPU): " + ", ".join(
            f"{name.replace('_', ' ')} {statistics.median(values):.0f} ({BUDGET_US[name]})"
            for name, values in parts.items()))


def keep(result, path):
    """Writes what was measured; what is there of other guests stays."""
    if not path:
        return
    before = {}
    if os.path.exists(path):
        with open(path) as file:
            before = json.load(file)
    with open(path, "w") as file:
        json.dump(before | result, file, indent=1)


def chain(system, guest, channel, moves, log):
    """One guest that moves again and again: its longest pause, and its first move against the tenth."""
    running = system.boot(guest)
    try:
        running["console"].wait_ticks(10)
        found = []
        for number in range(moves):
            move = system.move(running, channel)
            move.destination.wait_ticks(8)
            found.append((move.total, console.pause_ms(move.source, move.destination)))
            log(f"{system.name} {channel}: move {number + 1} of {moves}")
        return found
    finally:
        system.quit(running)


def percentile(values, part):
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))]


def main():
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the idle guest, three rounds: within two minutes")
    parser.add_argument("--rounds", type=int, help="alternating rounds [5]")
    parser.add_argument("--moves", type=int, help="moves of one guest for the worst pause [50]")
    parser.add_argument("--guest", action="append", choices=GUESTS, help="these guests only")
    parser.add_argument("--json", metavar="FILE",
                        help="every figure of every run; what is there of other guests stays")
    parser.add_argument("--show", action="store_true", help="measure nothing: print what is in --json")
    parser.add_argument("--plot", metavar="FILE.svg", help="draw it; with --show")
    parser.add_argument("--without-qemu", action="store_true")
    args = parser.parse_args()
    rounds = args.rounds or (3 if args.quick else 5)
    moves = args.moves if args.moves is not None else (0 if args.quick else 50)
    guests = args.guest or (["idle"] if args.quick else list(GUESTS))

    if args.show:
        with open(args.json) as file:
            result = json.load(file)
        for label in GUESTS:
            if label in result:
                show(GUESTS[label], result[label], print)
        goals.show(result, print)
        if args.plot:
            import plot
            plot.draw(result, list(GUESTS), args.plot)
        return

    live = sys.stderr.isatty()

    def log(text):
        if live:
            print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)

    def out(text):
        log("")
        print(text, flush=True)

    work = tempfile.mkdtemp(prefix="bench")
    image = os.environ["BENCH_IMAGE"]
    for guest in GUESTS.values():
        guest.command_line = subprocess.run(
            [os.environ["BENCH_IMAGE_TOOL"], image, guest.spec, str(guest.cpus), os.environ["BENCH_TSC_KHZ"]],
            check=True, capture_output=True, text=True).stdout.strip()
    systems = [Ours(work)]
    theirs = []
    if not args.without_qemu:
        if shutil.which("qemu-system-x86_64"):
            systems.append(Qemu(work, image))
            theirs = THEIRS if not args.quick else ["exec", "unix", "tcp", "multifd-2"]
        else:
            print("SKIPPED QEMU: no qemu-system-x86_64 (package qemu-system-x86)")
    result = {"machine": platform.platform(), "cpus": os.cpu_count(), "rounds": rounds}
    began = time.monotonic()
    try:
        if theirs:
            version = subprocess.run(["qemu-system-x86_64", "--version"], capture_output=True, text=True)
            out(f"{version.stdout.splitlines()[0]}; {os.cpu_count()} CPUs; medians of {rounds} alternating rounds")
        result["limits"] = {}
        for kind in ("huge", "small"):
            try:
                found = [limits.measure(kind) for _ in range(rounds)]
            except OSError as error:
                out(f"SKIPPED the limits of {kind} pages: {error}")
                continue
            result["limits"][kind] = {key: statistics.median(run[key] for run in found) for key in found[0]}
            out(f"the machine, {kind} pages: " + ", ".join(
                f"{key} {value / 2**20:.0f} MiB/s" for key, value in result["limits"][kind].items()))
        for label in guests:
            guest = GUESTS[label]
            found = measure(systems, guest, rounds, OURS, theirs, log)
            result[label] = found
            show(guest, found, out)
            keep(result, args.json)
        if moves:
            for system, channel in ((systems[0], "exec"), *(((systems[1], "unix"),) if theirs else ())):
                found = chain(system, GUESTS["idle"], channel, moves, log)
                pauses = [pause for _, pause in found]
                tenth = f", first move / tenth {found[0][0] / found[9][0]:.2f}" if moves >= 10 else ""
                out(f"{system.name} {channel}, {moves} moves of one idle guest: pause p50 "
                    f"{percentile(pauses, 0.5):.1f} ms, worst {max(pauses):.1f} ms{tenth}")
                result[f"chain {system.name}"] = found
        goals.show(result, out)
        keep(result, args.json)
        out(f"took {time.monotonic() - began:.0f} s")
    finally:
        for system in systems:
            system.close()
        shutil.rmtree(work, ignore_errors=True)


main()
