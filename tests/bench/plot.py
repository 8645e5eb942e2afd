"""The figures of a run, drawn: total time and pause of every guest by every channel."""

import matplotlib

matplotlib.use("svg")
matplotlib.rcParams.update({"svg.hashsalt": "bench", "svg.fonttype": "none"})

from matplotlib import pyplot  # noqa: E402

# Told apart by the colour-blind: blues are ours, oranges QEMU's.
OURS = ["#08306b", "#2171b5", "#4292c6", "#6baed6", "#9ecae1"]
THEIRS = ["#7f2704", "#a63603", "#d94801", "#f16913", "#fdae6b"]


def draw(result, guests, path):
    guests = [label for label in guests if label in result]
    keys = []
    for label in guests:
        for key in result[label]["medians"]:
            if key not in keys:
                keys.append(key)
    colours = {}
    for name, palette in (("migpipe", OURS), ("QEMU", THEIRS)):
        for number, key in enumerate(key for key in keys if key.startswith(name)):
            colours[key] = palette[number % len(palette)]
    figure, axes = pyplot.subplots(2, 1, figsize=(12, 8), sharex=True)
    for axis, figure_name, scale, title in (
            (axes[0], "total_s", 1e3, "total (ms)"), (axes[1], "downtime_ms", 1, "pause (ms)")):
        width = 0.85 / max(1, len(keys))
        for number, key in enumerate(keys):
            heights = []
            for label in guests:
                row = result[label]["medians"].get(key)
                value = row.get(figure_name) if isinstance(row, dict) else None
                heights.append(value * scale if value else 0)
            places = [at + (number - len(keys) / 2 + 0.5) * width for at in range(len(guests))]
            axis.bar(places, heights, width, label=key, color=colours[key])
        axis.set_yscale("log")
        axis.set_ylabel(title)
        axis.grid(axis="y", alpha=0.3)
    axes[1].set_xticks(range(len(guests)), guests)
    axes[0].legend(ncols=5, fontsize="small", loc="upper left")
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
