"""Plots of the report: figures without pyplot's global state, encoded as PNG data URLs."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from llm_mer.evaluation.metrics import ECE_BINS

PALETTE = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#8C8C00", "#333333")
"""Okabe and Ito's colour-blind safe palette; its yellow, pale on white, is darkened to olive."""

MARKERS, LINES = ("o", "^", "s", "D", "v", "P"), ("-", "--", "-.", ":")
INK, FAINT = "#222222", "#999999"
DPI, CSS_PIXELS = 150, 100
FIRST_CJK = 0x2E80


@dataclass
class PlotNames:
    """Names as plots can show them: matplotlib's default font lacks Chinese, so such names become numbers with a key."""

    shown: list[str] = field(default_factory=list)
    key: str = ""

    @classmethod
    def of(cls, names: Sequence[str], word: str = "class") -> PlotNames:
        """``class 3`` for a name the font lacks, and a ``$`` that would start a formula escaped."""
        plain = [all(ord(c) < FIRST_CJK for c in name) for name in names]
        shown = [
            n.replace("$", r"\$") if ok else f"{word} {i + 1}" for i, (n, ok) in enumerate(zip(names, plain, strict=True))
        ]
        key = ", ".join(f"{word} {i + 1} = {n}" for i, (n, ok) in enumerate(zip(names, plain, strict=True)) if not ok)
        return cls(shown, key)


def pick_colour(index: int, total: int) -> Any:
    """The index-th of ``total`` colours: from the palette, or from a perceptually uniform scale if it is too small."""
    if total <= len(PALETTE):
        return PALETTE[index]
    return matplotlib.colormaps["viridis"](index / (total - 1))


def new_figure(width: float = 5.6, height: float = 4.2) -> tuple[Figure, Axes]:
    """A figure on the Agg canvas with one plain axes."""
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9, colors=INK)
    return figure, axes


@dataclass(frozen=True)
class Image:
    """``data:image/png;base64,…`` and the display width in CSS pixels at which its text matches the page's captions."""

    address: str
    width: int


def encode_png(figure: Figure) -> Image:
    """Encode a figure; the same figure gives the same text (no date or version inside)."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", metadata={"Software": None})
    text = "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode("ascii")
    return Image(text, round(figure.get_figwidth() * CSS_PIXELS))


def _legend(axes: Axes, entries: int, title: str | None = None) -> None:
    """Place the legend above the axes, so that it hides no data."""
    if entries:
        axes.legend(
            loc="lower left",
            bbox_to_anchor=(0, 1.0),
            ncols=min(entries, 4),
            fontsize=9,
            frameon=False,
            title=title,
            handletextpad=0.4,
            columnspacing=1.0,
        )


def draw_confusion(counts: np.ndarray, names: Sequence[str]) -> Image:
    """Truths in rows, answers in columns: the share of the row as colour, count and share as text."""
    size = len(names)
    side = max(4.6, 0.72 * size + 1.2)
    figure, axes = new_figure(side, side * 0.92)
    totals = counts.sum(axis=1, keepdims=True)
    shares = counts / np.maximum(totals, 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for i in range(size):
        for j in range(size):
            if counts[i, j]:
                point_colour = "white" if shares[i, j] > 0.55 else INK
                axes.text(
                    j, i, f"{counts[i, j]}\n{shares[i, j]:.2f}", ha="center", va="center", fontsize=8.5, color=point_colour
                )
    axes.set_xticks(range(size), names, rotation=35 if size > 2 else 0, ha="right" if size > 2 else "center")
    axes.set_yticks(range(size), [f"{n} ({t})" for n, t in zip(names, totals[:, 0], strict=True)])
    axes.set_xlabel("answer")
    axes.set_ylabel("truth (count)")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    return encode_png(figure)


def draw_score_scatter(
    truth: np.ndarray, value: np.ndarray, intervals: np.ndarray | None, bounds: tuple[float, float]
) -> Image:
    """Answers against truths with the diagonal; each 80 % interval as a bar, orange if it misses the truth."""
    figure, axes = new_figure(4.8, 4.6)
    margin = 0.05 * (bounds[1] - bounds[0])
    low, high = bounds[0] - margin, bounds[1] + margin
    axes.plot([low, high], [low, high], color=FAINT, linewidth=1, linestyle="--", label="answer = truth")
    if intervals is not None:
        inside = (np.round(truth, 6) >= np.round(intervals[:, 0], 6)) & (np.round(truth, 6) <= np.round(intervals[:, 1], 6))
        for mask, point_colour, label in (
            (inside, PALETTE[0], "interval holds truth"),
            (~inside, PALETTE[3], "interval misses it"),
        ):
            axes.vlines(truth[mask], intervals[mask, 0], intervals[mask, 1], color=point_colour, alpha=0.3, linewidth=1)
            axes.scatter(truth[mask], value[mask], s=20, color=point_colour, alpha=0.75, linewidths=0, label=label)
    else:
        axes.scatter(truth, value, s=20, color=PALETTE[0], alpha=0.75, linewidths=0)
    axes.set(xlim=(low, high), ylim=(low, high), xlabel="true score", ylabel="answered score")
    axes.set_aspect("equal")
    _legend(axes, 2)
    return encode_png(figure)


def draw_coverage(levels: Sequence[float], observed: Mapping[str, Sequence[float]]) -> Image:
    """Share of truths inside the central interval of each level, one line per language; the diagonal is calibrated."""
    figure, axes = new_figure(4.8, 4.6)
    axes.plot([0, 1], [0, 1], color=FAINT, linewidth=1, linestyle="--", label="exact")
    for i, (language, values) in enumerate(observed.items()):
        axes.plot(
            levels,
            values,
            color=pick_colour(i, len(observed)),
            marker=MARKERS[i % len(MARKERS)],
            markersize=5,
            label=language,
        )
    axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="mass of the central interval", ylabel="share of truths inside")
    axes.set_aspect("equal")
    _legend(axes, len(observed) + 1)
    return encode_png(figure)


def draw_reliability(answers: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> Image:
    """Accuracy against confidence in the bins of ECE, one line per language, marker area by count; below, the counts."""
    figure = Figure(figsize=(4.8, 4.9), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    upper.plot([0, 1], [0, 1], color=FAINT, linewidth=1, linestyle="--", label="exact")
    edges = np.linspace(0, 1, ECE_BINS + 1)
    width = 0.8 / ECE_BINS / max(len(answers), 1)
    for i, (language, (confidence, correct)) in enumerate(answers.items()):
        bins = np.clip(np.ceil(confidence * ECE_BINS).astype(int) - 1, 0, ECE_BINS - 1)
        filled = [b for b in range(ECE_BINS) if (bins == b).any()]
        counts = np.array([(bins == b).sum() for b in range(ECE_BINS)])
        x = [confidence[bins == b].mean() for b in filled]
        y = [correct[bins == b].mean() for b in filled]
        point_colour = pick_colour(i, len(answers))
        upper.plot(x, y, color=point_colour, linewidth=1.2, linestyle=LINES[i % len(LINES)])
        area = 12 + 160 * counts[filled] / counts.sum()
        upper.scatter(x, y, s=area, color=point_colour, marker=MARKERS[i % len(MARKERS)], alpha=0.85, label=language)
        lower.bar(edges[:-1] + (i + 0.5) * width + 0.1 / ECE_BINS, counts, width=width, color=point_colour)
    upper.set(xlim=(0, 1.02), ylim=(-0.02, 1.04), ylabel="share right")
    lower.set(xlabel="confidence (largest probability)", ylabel="count")
    for axes in (upper, lower):
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=9)
    _legend(upper, len(answers) + 1)
    return encode_png(figure)


def draw_group_bars(
    groups: Sequence[str], parts: Sequence[str], mean: np.ndarray, spread: np.ndarray, label: str, level: float | None = None
) -> Image:
    """Means ``(groups, parts)`` as bars, ± one standard deviation as a thin line, ``level`` as a dashed one."""
    figure, axes = new_figure(max(4.6, 1.4 + 0.2 * len(groups) * (len(parts) + 1)), 3.9)
    width = 0.8 / len(parts)
    x_positions = np.arange(len(groups))
    for j, part in enumerate(parts):
        axes.bar(
            x_positions + (j - (len(parts) - 1) / 2) * width,
            mean[:, j],
            width=width * 0.92,
            yerr=spread[:, j],
            color=pick_colour(j, len(parts)),
            error_kw={"elinewidth": 1, "ecolor": INK, "alpha": 0.6},
            label=part,
        )
    if level is not None:
        axes.axhline(level, color=FAINT, linestyle="--", linewidth=1)
    if mean.min() < 0:
        axes.axhline(0, color=INK, linewidth=0.8)
    many = len(groups) > 3
    axes.set_xticks(x_positions, groups, rotation=30 if many else 0, ha="right" if many else "center")
    axes.set_ylabel(label)
    _legend(axes, len(parts))
    return encode_png(figure)


def draw_group_heatmap(groups: Sequence[str], parts: Sequence[str], mean: np.ndarray) -> Image:
    """Means ``(groups, parts)`` as a heat map, for too many parts for bars."""
    figure, axes = new_figure(max(4.6, 0.55 * len(parts) + 1.8), 0.42 * len(groups) + 1.6)
    shading = axes.imshow(mean, cmap="cividis", aspect="auto")
    low, high = float(mean.min()), float(mean.max())
    for i in range(len(groups)):
        for j in range(len(parts)):
            point_colour = INK if mean[i, j] > (low + high) / 2 else "white"
            axes.text(j, i, f"{mean[i, j]:.2f}", ha="center", va="center", fontsize=8, color=point_colour)
    axes.set_xticks(range(len(parts)), parts, rotation=35, ha="right")
    axes.set_yticks(range(len(groups)), groups)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    figure.colorbar(shading, ax=axes, shrink=0.9)
    return encode_png(figure)


def draw_turns(values: np.ndarray, parts: Sequence[str], ticks: Sequence[str], label: str) -> Image:
    """Gates ``(turns, parts)`` along one conversation."""
    figure, axes = new_figure(max(4.6, 0.5 * len(ticks) + 1.6), 3.9)
    for j, part in enumerate(parts):
        line, marker = LINES[j % len(LINES)], MARKERS[j % len(MARKERS)]
        axes.plot(values[:, j], color=pick_colour(j, len(parts)), linestyle=line, marker=marker, markersize=5, label=part)
    axes.set_xticks(range(len(ticks)), ticks, rotation=35, ha="right")
    axes.set_xlabel("turn: speaker, true answer")
    axes.set_ylabel(label)
    _legend(axes, len(parts))
    return encode_png(figure)


def draw_embedding(points: np.ndarray, classes: Sequence[str], names: Sequence[str], languages: Sequence[str]) -> Image:
    """Points ``(N, 2)``: colour by class, marker by language."""
    figure, axes = new_figure(6.4, 5.0)
    present_languages = sorted(set(languages))
    present_classes = [name for name in names if name in set(classes)]
    label_of, language_of = np.array(classes), np.array(languages)
    for i, name in enumerate(names):
        for j, language in enumerate(present_languages):
            mask = (label_of == name) & (language_of == language)
            if mask.any():
                marker = MARKERS[j % len(MARKERS)]
                x, y = points[mask].T
                axes.scatter(x, y, s=24, color=pick_colour(i, len(names)), marker=marker, alpha=0.8, linewidths=0)
    for name in present_classes:
        axes.scatter([], [], s=24, color=pick_colour(list(names).index(name), len(names)), label=name)
    for j, language in enumerate(present_languages if len(present_languages) > 1 else []):
        axes.scatter([], [], s=24, color=INK, marker=MARKERS[j % len(MARKERS)], label=language)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=9, frameon=False)
    return encode_png(figure)


def draw_trajectories(points: np.ndarray, names: Sequence[str], label: str) -> Image:
    """Trajectories ``(steps, n, 2)`` of n points: a line each, from a hollow marker to a filled one."""
    figure, axes = new_figure(6.4, 5.0)
    for i, name in enumerate(names):
        x, y = points[:, i].T
        line_colour, marker = pick_colour(i, len(names)), MARKERS[i % len(MARKERS)]
        axes.plot(x, y, color=line_colour, linewidth=1.2, marker=".", markersize=3)
        axes.scatter(x[:1], y[:1], s=44, facecolors="none", edgecolors=[line_colour], marker=marker)
        axes.scatter(x[-1:], y[-1:], s=44, color=[line_colour], marker=marker, label=name)
    axes.set_xlabel(f"{label}, first principal axis")
    axes.set_ylabel("second principal axis")
    axes.set_aspect("equal", adjustable="datalim")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=9, frameon=False)
    return encode_png(figure)


@dataclass(frozen=True)
class Band:
    """A line with its band: ``y``, ``low`` and ``high`` at each of ``x``, and the level of a constant answer."""

    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]
    level: float


def draw_noise_curves(bands: Mapping[str, Band], ticks: Mapping[float, str], across: str, up: str) -> Image:
    """A metric against the amount of corruption, one line per language with its interval as a band, its baseline dotted.

    ``ticks`` are all positions on the x axis and their labels; corruption grows to the right.
    """
    figure, axes = new_figure(5.2, 4.1)
    for i, (name, band) in enumerate(bands.items()):
        point_colour, line = pick_colour(i, len(bands)), LINES[i % len(LINES)]
        axes.fill_between(band.x, band.low, band.high, color=point_colour, alpha=0.15, linewidth=0)
        axes.plot(
            band.x, band.y, color=point_colour, linestyle=line, marker=MARKERS[i % len(MARKERS)], markersize=5, label=name
        )
        axes.axhline(band.level, color=point_colour, linestyle=":", linewidth=1.2)
    axes.plot([], [], color=INK, linestyle=":", linewidth=1.2, label="baseline")
    axes.set_xticks(list(ticks), list(ticks.values()))
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    _legend(axes, len(bands) + 1)
    return encode_png(figure)


def draw_curves(series: Mapping[str, tuple[Sequence[float], Sequence[float]]], label: str) -> Image:
    """One line per series over epochs."""
    figure, axes = new_figure(5.0, 3.9)
    for i, (name, (x, y)) in enumerate(series.items()):
        marker = MARKERS[i % len(MARKERS)] if len(x) < 60 else ""
        axes.plot(
            x,
            y,
            color=pick_colour(i, len(series)),
            linestyle=LINES[i % len(LINES)],
            marker=marker,
            markersize=3.5,
            label=name,
        )
    axes.set_xlabel("epoch")
    axes.set_ylabel(label)
    if all(min(y) >= 0 for _, y in series.values()):
        axes.set_ylim(bottom=0)
    _legend(axes, len(series))
    return encode_png(figure)
