"""Training curves: losses, scores, and vectors tracked by the adapter."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from llm_mer.adapters.diagnostics import DiagnosticInfo
from llm_mer.reporting import plots
from llm_mer.reporting.blocks import Picture, Section
from llm_mer.reporting.facts import LoadedEvaluation
from llm_mer.reporting.wording import with_key


def training_section(main: LoadedEvaluation) -> Section:
    """Losses and the validation score over epochs."""
    section = Section("training", "Training")
    log = main.read_log()

    def series(series_name: Callable[[str], str | None]) -> dict[str, tuple[list[float], list[float]]]:
        found: dict[str, tuple[list[float], list[float]]] = {}
        for entry in log:
            for key, value in entry.items():
                name = series_name(key)
                if name is not None and "epoch" in entry and np.isfinite(value):
                    x, y = found.setdefault(name, ([], []))
                    x.append(float(entry["epoch"]))
                    y.append(float(value))
        return found

    def epoch_value_name(info: DiagnosticInfo, key: str) -> str | None:
        return info.parts[0] if key == info.name else None

    def loss_name(key: str) -> str | None:
        return "total" if key == "loss" else key.removeprefix("loss_") if key.startswith("loss_") else None

    plotted: list[tuple[Callable[[str], str | None], str, str]] = [
        (loss_name, "training loss", "Training losses by name"),
        (
            lambda key: loss_name(key[5:]) if key.startswith("eval_") else None,
            "validation loss",
            "Validation losses by name",
        ),
        (
            lambda key: "score" if key == "eval_score" else None,
            "validation score",
            "Validation score over tasks and languages",
        ),
        *(
            (partial(epoch_value_name, info), info.label or info.name, info.title)
            for info in main.evaluation.diagnostics
            if info.kind == "epoch_value"
        ),
    ]
    for series_name, label, title in plotted:
        lines = series(series_name)
        if lines:
            plain = {plots.PlotNames.of([name]).shown[0]: line for name, line in lines.items()}
            points = max(len(x) for x, _ in lines.values())
            image = plots.draw_curves(plain, label)
            section.blocks.append(Picture(image, f"{title} by epoch, n={points} log entries, from log_history.json."))
    section.blocks += [trajectory_picture(main, name, steps) for name, steps in main.read_trajectories().items()]
    return section


def principal_plane(points: np.ndarray) -> tuple[np.ndarray, float]:
    """``(steps, n, d)`` on the plane of its two largest principal axes ``(steps, n, 2)``, and its share of the variance."""
    steps, count, size = points.shape
    flat = points.reshape(-1, size)
    centred = flat - flat.mean(axis=0)
    _, singular, axes = np.linalg.svd(centred, full_matrices=False)
    share = float((singular[:2] ** 2).sum() / max((singular**2).sum(), 1e-12))
    plane = np.zeros((len(flat), 2))
    plane[:, : len(axes[:2])] = centred @ axes[:2].T
    return plane.reshape(steps, count, 2), share


def trajectory_picture(main: LoadedEvaluation, name: str, steps: list[tuple[float, np.ndarray]]) -> Picture:
    """The trajectory of each tracked vector over the epochs, on a common plane."""
    points, share = principal_plane(np.stack([vectors for _, vectors in steps]))
    count = points.shape[1]
    followed = (i for i in main.evaluation.diagnostics if (i.kind, i.name, len(i.parts)) == ("trajectory", name, count))
    info = next(followed, None)
    title = name.replace("_", " ") if info is None else info.title
    labels = [f"{title.removesuffix('s')} {i + 1}" for i in range(count)] if info is None else info.parts
    plot_names = plots.PlotNames.of(labels)
    caption = (
        f"Trajectory of the {title} through training, epochs {steps[0][0]:g} (hollow) to {steps[-1][0]:g} (full), "
        f"n={count}, on the two principal axes of all their positions, which explain {100 * share:.0f} % of the variance."
    )
    return Picture(plots.draw_trajectories(points, plot_names.shown, title), with_key(caption, plot_names))
