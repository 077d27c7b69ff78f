"""The training: losses, scores, and vectors that the adapter follows."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from llm_mer.reporting import plots
from llm_mer.reporting.blocks import Picture, Section
from llm_mer.reporting.facts import Loaded
from llm_mer.reporting.wording import with_key


def training_section(main: Loaded) -> Section:
    """Losses and the validation score over epochs."""
    section = Section("training", "Training")
    log = main.read_log()

    def series(keep: Callable[[str], str | None]) -> dict[str, tuple[list[float], list[float]]]:
        found: dict[str, tuple[list[float], list[float]]] = {}
        for entry in log:
            for key, value in entry.items():
                name = keep(key)
                if name is not None and "epoch" in entry and np.isfinite(value):
                    x, y = found.setdefault(name, ([], []))
                    x.append(float(entry["epoch"]))
                    y.append(float(value))
        return found

    def loss_name(key: str) -> str | None:
        return "total" if key == "loss" else key.removeprefix("loss_") if key.startswith("loss_") else None

    plotted = (
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
        (
            lambda key: "mean over labels" if key == "label_drift" else None,
            "label drift",
            "How far the label embeddings moved in the epoch (mean Euclidean distance over labels)",
        ),
    )
    for keep, label, words in plotted:
        lines = series(keep)
        if lines:
            plain = {plots.Names.of([name]).shown[0]: line for name, line in lines.items()}
            points = max(len(x) for x, _ in lines.values())
            image = plots.curves(plain, label)
            section.blocks.append(Picture(image, f"{words} by epoch, n={points} log entries, from log_history.json."))
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


def trajectory_picture(main: Loaded, name: str, steps: list[tuple[float, np.ndarray]]) -> Picture:
    """The way of each followed vector over the epochs, all of them on one plane."""
    points, share = principal_plane(np.stack([vectors for _, vectors in steps]))
    count = points.shape[1]
    labels = next((list(t.label_names) for t in main.tasks if t.kind == "classification" and t.num_classes == count), None)
    if labels is None or name != "label_embeddings":
        labels = [f"{name.removesuffix('s').replace('_', ' ')} {i + 1}" for i in range(count)]
    shown = plots.Names.of(labels)
    words = name.replace("_", " ")
    caption = (
        f"Way of the {words} through training, epochs {steps[0][0]:g} (hollow) to {steps[-1][0]:g} (full), n={count}, on "
        f"the two principal axes of all their places, which hold {100 * share:.0f} % of the variance."
    )
    return Picture(plots.trajectories(points, shown.shown, words), with_key(caption, shown))
