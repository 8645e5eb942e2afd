"""What migpipe wants to reach beside QEMU and the machine, and what it reached in one run."""

import statistics


def rows(result, guest):
    """The medians of one guest, by "system channel"; empty if it was not measured."""
    found = result.get(guest, {}).get("medians", {})
    return {key: row for key, row in found.items() if isinstance(row, dict)}


def ours(table, figure, but=("zero-copy",)):
    values = {key: row[figure] for key, row in table.items()
              if key.startswith("migpipe") and row.get(figure) is not None
              and not any(word in key for word in but)}
    return values


def theirs(table, figure):
    return {key: row[figure] for key, row in table.items()
            if key.startswith("QEMU") and row.get(figure) is not None}


def cpu_per_gib(table, name):
    values = [row["cpu_s"] / (row["sent_bytes"] / 2**30) for key, row in table.items()
              if key.startswith(name) and row["sent_bytes"] > 2**24 and "zero-copy" not in key]
    return statistics.median(values) if values else None


def each(result):
    """(goal, its limit, what was reached or None, whether less is better)"""
    idle = rows(result, "idle")
    total = {key: row["total_s"] for key, row in idle.items()}
    fastest = min(theirs(idle, "total_s").values(), default=None)
    if "QEMU exec" in total and "migpipe pipe" in total:
        yield "total, ours by pipe / QEMU exec", 0.25, total["migpipe pipe"] / total["QEMU exec"], True
    best = min((total[key] for key in ("migpipe exec", "migpipe unix", "migpipe tcp") if key in total), default=None)
    if fastest and best:
        yield "total, our fastest / QEMU's fastest", 0.8, best / fastest, True
    pipe = result.get("limits", {}).get("huge", {}).get("pipe into fresh")
    for channel, goal in (("pipe", 0.8), ("exec zero-copy", 0.95)):
        row = idle.get(f"migpipe {channel}")
        if pipe and row:
            rate = row["sent_bytes"] / row["total_s"]
            yield f"bytes a second by {channel} / the machine's pipe", goal, rate / pipe, False
    for guest, goal in (("idle", 5), ("hot-4M", 15)):
        pauses = ours(rows(result, guest), "downtime_ms")
        if pauses:
            yield f"pause of {guest}, our worst channel (ms)", goal, max(pauses.values()), True
    for guest in ("idle", "hot-1M", "hot-4M", "hot-64M", "zeros-4G", "grow-1G", "grow-4G", "untouched-16G"):
        table = rows(result, guest)
        mine, other = ours(table, "downtime_ms"), theirs(table, "downtime_ms")
        if mine and other:
            ratio = statistics.median(mine.values()) / min(other.values())
            yield f"pause of {guest}, ours (median) / QEMU's shortest", 1, ratio, True
    chain = result.get("chain migpipe")
    if chain:
        yield f"longest pause of {len(chain)} moves (ms)", 20, max(pause for _, pause in chain), True
        if len(chain) >= 10:
            yield "first move after the boot / the tenth", 1.5, chain[0][0] / chain[9][0], True
    untouched = ours(rows(result, "untouched-16G"), "total_s")
    if untouched:
        yield "untouched 16 GiB, our median channel (s)", 0.2, statistics.median(untouched.values()), True
    cpu = cpu_per_gib(idle, "migpipe"), cpu_per_gib(idle, "QEMU")
    if all(cpu):
        yield "CPU seconds a GiB, ours / QEMU's (medians)", 1, cpu[0] / cpu[1], True
    work = ours(idle, "work"), theirs(idle, "work")
    if all(work):
        ratio = statistics.median(work[0].values()) / statistics.median(work[1].values())
        yield "guest's work meanwhile, ours / QEMU's (medians)", 1, ratio, False


def show(result, out):
    found = list(each(result))
    if not found:
        return
    out("\ngoal" + " " * 52 + "wanted   reached")
    for name, goal, reached, less in found:
        met = reached <= goal if less else reached >= goal
        sign = "<=" if less else ">="
        out(f"{name:54}{sign} {goal:<6} {reached:8.2f}  {'yes' if met else 'no'}")
