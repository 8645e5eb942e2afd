"""Asks about each guest of a list, moves it, and compares: see scripts/estimate."""

import argparse
import json
import pathlib
import subprocess
import sys
import time

# Name, hot pages, hot pages written in a second, MiB of random data, further options of mig-send. Hot
# sets that fit the downtime and that do not, rates below and above the path's, and what a stall leads to.
GUESTS = [
    ("idle", 64, "100", 200, ["--max-bandwidth", "40M"]),
    ("small hot set", 1024, "2000", 200, ["--max-bandwidth", "40M"]),
    ("small, flat out", 1024, "max", 200, ["--max-bandwidth", "50M"]),
    ("slow sweep", 8192, "1000", 200, ["--max-bandwidth", "30M"]),
    ("middling", 4096, "5000", 200, ["--max-bandwidth", "40M"]),
    ("large, slow", 20000, "3000", 150, ["--max-bandwidth", "50M"]),
    ("large, quick", 20000, "6000", 100, ["--max-bandwidth", "60M"]),
    ("half the path", 16384, "8000", 100, ["--max-bandwidth", "60M"]),
    ("throttled", 6000, "max", 100, ["--max-bandwidth", "50M"]),
    ("throttled, large", 16384, "20000", 100, ["--max-bandwidth", "60M"]),
    ("stopped", 6000, "max", 100, ["--max-bandwidth", "50M", "--on-stall", "stop"]),
    ("long downtime", 4096, "20000", 200, ["--max-bandwidth", "40M", "--max-downtime", "500"]),
    ("narrow", 2048, "500", 64, ["--max-bandwidth", "10M"]),
    ("no limit", 1024, "2000", 400, []),
]

# The guest that is asked about may stand beside its destination: both have this much.
MEMORY = "600M"

# A program that has not ended by then hangs.
HANG = 300


def run(*command):
    return subprocess.run(command, capture_output=True, text=True, timeout=HANG)


def boot(directory, name, pages, rate, fill):
    console = directory / f"{name}.console"
    kernel = f"builtin:dirty,pages={pages},rate={rate},fill=random,fill-mb={fill},tick-ms=20"
    command = ["vmrun", "--name", name, "--kernel", kernel, "--mem", MEMORY, "--again"]
    process = subprocess.Popen([*command, f"--console=file:{console}", "--log=error"])
    deadline = time.monotonic() + HANG
    while "ready" not in (console.read_text() if console.exists() else ""):
        if process.poll() is not None or time.monotonic() > deadline:
            sys.exit(f"the guest {name} does not come up")
        time.sleep(0.02)
    return process


def compare(directory, number, guest):
    label, pages, rate, fill, options = guest
    name, there = f"g{number}", f"h{number}"
    process = boot(directory, name, pages, rate, fill)
    try:
        dest = f"exec:mig-recv --quiet --console null --name {there}"
        asked = run("mig-send", "-n", "--json", *options, name, dest)
        if asked.returncode not in (0, 1) or not asked.stdout:
            sys.exit(f"{label}: {asked.stderr}")
        said = json.loads(asked.stdout)
        report = directory / f"{name}.json"
        began = time.monotonic()
        moved = run("mig-send", "--quiet", "--report", report, *options, name, dest)
        took = time.monotonic() - began
        came = json.loads(report.read_text())
    finally:
        run("vmctl", "quit", "--force", there)
        run("vmctl", "quit", "--force", name)
        process.wait(HANG)
    forecast = said["forecast"]
    return {
        "guest": label,
        "possible": said["possible"],
        "moved": moved.returncode == 0,
        "total_s": [forecast["total_ns"] / 1e9, took],
        "sent_bytes": [forecast["sent_bytes"], came["totals"]["sent_bytes"]],
        "downtime_ms": [forecast["downtime_ns"] / 1e6, (came["downtime"]["total_ns"] or 0) / 1e6],
        "rounds": [forecast["rounds"], len(came["rounds"])],
        "throttle": [forecast["throttle_percent"], (came["throttle"] or [{"percent": 0}])[-1]["percent"]],
    }


def off(pair):
    said, came = pair
    return (said - came) / came if came else 0.0


def show(row):
    def pair(key, unit, digits):
        said, came = (value / unit for value in row[key])
        return f"{said:.{digits}f} | {came:.{digits}f}"

    verdict = {True: "moves", False: "stays"}
    print(
        f"| {row['guest']} | {verdict[row['possible']]} | {verdict[row['moved']]} "
        f"| {pair('total_s', 1, 2)} | {off(row['total_s']):+.0%} "
        f"| {pair('sent_bytes', 1 << 20, 0)} | {pair('downtime_ms', 1, 1)} "
        f"| {pair('rounds', 1, 0)} | {pair('throttle', 1, 0)} |",
        flush=True,
    )


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("directory", type=pathlib.Path)
    parser.add_argument("--json", type=pathlib.Path)
    parser.add_argument("names", nargs="*")
    args = parser.parse_args()
    print("| guest | said | came | s said | s came | off | MiB said | came | ms still said | came "
          "| rounds said | came | % throttled said | came |")
    print("|" + " --- |" * 14)
    rows = []
    for number, guest in enumerate(GUESTS):
        if not args.names or guest[0] in args.names:
            rows.append(compare(args.directory, number, guest))
            show(rows[-1])
    good = [row for row in rows if row["possible"] == row["moved"] and abs(off(row["total_s"])) <= 0.2]
    print(f"\n{len(good)} of {len(rows)} as was said, within a fifth of the time")
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1))
    sys.exit(0 if rows and 10 * len(good) >= 9 * len(rows) else 1)


main()
