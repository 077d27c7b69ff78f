"""The figure of a prompt comparison."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llm_mer.experiments.prompt_comparison import PromptComparison

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_prompt_scores(comparison: PromptComparison) -> Figure:
    """Draw every prompt's score with its interval, one panel per task and language; the constant answer is dashed."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from llm_mer.reporting.plots import DPI, FAINT, PALETTE

    panels = list(dict.fromkeys((row.task, row.language) for row in comparison.rows))
    names = list(dict.fromkeys(row.variant for row in comparison.rows))
    figure = Figure(figsize=(2.6 + 2.7 * len(panels), 1.3 + 0.32 * len(names)), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes_grid: Any = figure.subplots(1, len(panels), sharey=True, squeeze=False)
    for axes, (task, language) in zip(axes_grid[0], panels, strict=True):
        rows = [row for row in comparison.rows if (row.task, row.language) == (task, language)]
        axes.axvline(rows[0].baseline, color=FAINT, linestyle="--", linewidth=1)
        axes.axvline(rows[0].score, color=PALETTE[0], linewidth=0.8, alpha=0.5)
        for row in rows:
            place = names.index(row.variant)
            significant = row.p_value is not None and row.p_value.is_significant
            colour = PALETTE[3] if significant else PALETTE[0]
            axes.hlines(place, *row.interval, color=colour, linewidth=1.5, alpha=0.6)
            axes.plot([row.score], [place], marker="D" if significant else "o", markersize=5, color=colour)
        axes.set_title(f"{task}, {language}", fontsize=10)
        axes.set_xlabel(rows[0].metric, fontsize=9)
        axes.set_yticks(range(len(names)), names, fontsize=8.5)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8.5)
    figure.supxlabel(
        "diamonds: different from their reference (adjusted p < 0.05); line: the model's prompt; dashed: majority or mean",
        fontsize=8.5,
    )
    return figure
