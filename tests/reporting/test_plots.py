"""What is drawn is what was given: the artists of every figure against the numbers handed in."""

from __future__ import annotations

import base64
import io
import itertools
from collections.abc import Callable
from typing import Any

import matplotlib.colors
import matplotlib.image
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.figure import Figure

from llm_mer.evaluation.metrics import calibration_metrics
from llm_mer.reporting import plots

Draw = Callable[..., Axes]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Axes]]:
    """Calls a plot and gives its axes instead of a rendered picture."""
    kept: list[Figure] = []

    def keep(figure: Figure) -> plots.Image:
        kept.append(figure)
        return plots.Image("data:,", 1)

    def call(plot: Callable[..., plots.Image], *args: Any, **kwargs: Any) -> list[Axes]:
        monkeypatch.setattr(plots, "encode_png", keep)
        plot(*args, **kwargs)
        return kept[-1].axes

    return call


def points(axes: Axes) -> list[np.ndarray]:
    """Positions of every scatter that has any, ``(n, 2)`` each."""
    found = [np.asarray(c.get_offsets()) for c in axes.collections if isinstance(c, PathCollection)]
    return [offsets for offsets in found if len(offsets)]


def lines(axes: Axes) -> dict[str, np.ndarray]:
    """``{label: (n, 2)}`` of every line."""
    return {str(line.get_label()): np.asarray(line.get_xydata()) for line in axes.lines}


def legend(axes: Axes) -> list[str]:
    found = axes.get_legend()
    return [] if found is None else [text.get_text() for text in found.get_texts()]


def ticks(labels: Any) -> list[str]:
    return [label.get_text() for label in labels]


def heights(container: Any) -> list[float]:
    return [patch.get_height() for patch in container]


def test_noise_curves_have_a_band_and_a_baseline_for_each_language(drawn: Callable[..., list[Axes]]) -> None:
    band = plots.Band([0, 0.3], [0.8, 0.5], [0.7, 0.4], [0.9, 0.6], 0.25)
    other = plots.Band([0, 0.3], [0.6, 0.5], [0.5, 0.4], [0.7, 0.6], 0.5)
    (axes,) = drawn(plots.draw_noise_curves, {"en": band, "zh": other}, {0.0: "0", 0.3: "0.3"}, "rate", "accuracy")
    found = lines(axes)
    assert found["en"].tolist() == [[0, 0.8], [0.3, 0.5]]
    assert found["zh"].tolist() == [[0, 0.6], [0.3, 0.5]]
    levels = [line.get_ydata()[0] for line in axes.lines if line.get_linestyle() == ":" and len(line.get_ydata())]
    assert levels == [0.25, 0.5]
    assert legend(axes) == ["en", "zh", "baseline"]
    assert ticks(axes.get_xticklabels()) == ["0", "0.3"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("rate", "accuracy")


# --- pictures ---------------------------------------------------------------------------------------------------------


def png(address: str) -> np.ndarray:
    kind, _, text = address.partition(",")
    assert kind == "data:image/png;base64"
    return np.asarray(matplotlib.image.imread(io.BytesIO(base64.b64decode(text, validate=True)), format="png"))


def test_a_picture_is_a_png_in_the_address_itself_of_the_announced_width() -> None:
    image = plots.draw_curves({"total": ([1, 2], [0.5, 0.25])}, "loss")
    pixels = png(image.address)
    assert pixels.shape[1] / plots.DPI == pytest.approx(image.width / plots.CSS_PIXELS, abs=0.02)
    assert pixels[..., :3].min() < 0.5 < pixels[..., :3].max()  # something is drawn on white


def test_the_same_numbers_give_the_same_bytes_and_pyplot_keeps_nothing() -> None:
    import matplotlib.pyplot

    first, second = (plots.draw_turns(np.array([[0.1], [0.9]]), ["a"], ["0", "1"], "gate") for _ in range(2))
    assert first == second
    assert matplotlib.pyplot.get_fignums() == []


def test_names_without_a_glyph_become_numbers_with_a_key_and_dollars_stay_dollars() -> None:
    names = plots.PlotNames.of(["joy", "喜悦", "$x$"])
    assert names.shown == ["joy", "class 2", r"\$x\$"]
    assert names.key == "class 2 = 喜悦"
    assert plots.PlotNames.of(["joy"], "part") == plots.PlotNames(["joy"], "")


def test_chinese_names_and_formula_signs_are_drawn_without_a_missing_glyph(recwarn: pytest.WarningsRecorder) -> None:
    names = plots.PlotNames.of(["喜悦", "a$b$c", "x_1^2"])
    png(plots.draw_confusion(np.eye(3, dtype=int), names.shown).address)
    assert not [w for w in recwarn if "Glyph" in str(w.message)]


@pytest.mark.parametrize("total", [2, 8, 9, 26])
def test_no_two_of_so_many_parts_share_a_colour(total: int) -> None:
    colours = {matplotlib.colors.to_hex(plots.pick_colour(i, total)) for i in range(total)}
    assert len(colours) == total


# --- classes ----------------------------------------------------------------------------------------------------------


def test_confusion_writes_each_count_and_share_in_its_own_cell_and_colours_by_share(drawn: Draw) -> None:
    counts = np.array([[6, 2, 0], [0, 0, 0], [1, 0, 3]])
    (axes,) = drawn(plots.draw_confusion, counts, ["joy", "fear", "anger"])
    shown = {(int(t.get_position()[1]), int(t.get_position()[0])): t.get_text() for t in axes.texts}
    assert shown == {(0, 0): "6\n0.75", (0, 1): "2\n0.25", (2, 0): "1\n0.25", (2, 2): "3\n0.75"}
    (shading,) = axes.images
    np.testing.assert_allclose(shading.get_array(), [[0.75, 0.25, 0], [0, 0, 0], [0.25, 0, 0.75]])
    assert ticks(axes.get_xticklabels()) == ["joy", "fear", "anger"]
    assert ticks(axes.get_yticklabels()) == ["joy (8)", "fear (0)", "anger (4)"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("answer", "truth (count)")


def test_reliability_draws_mean_confidence_and_share_right_of_every_filled_bin(drawn: Draw) -> None:
    random = np.random.default_rng(0)
    given = {}
    for language, size in (("en", 60), ("zh", 25)):
        confidence = random.uniform(0.2, 1.0, size)
        given[language] = (confidence, random.random(size) < confidence)
    upper, lower = drawn(plots.draw_reliability, given)
    curves = [np.asarray(line.get_xydata()) for line in upper.lines][1:]
    bars = np.array([patch.get_height() for patch in lower.patches]).reshape(2, 15)
    for curve, marks, counts, (confidence, right) in zip(curves, points(upper), bars, given.values(), strict=True):
        bins = np.array([next(b for b in range(15) if c <= (b + 1) / 15) for c in confidence])
        filled = sorted(set(bins))
        expected = [(confidence[bins == b].mean(), right[bins == b].mean()) for b in filled]
        np.testing.assert_allclose(curve, expected)
        np.testing.assert_allclose(marks, expected)
        np.testing.assert_array_equal(counts, [(bins == b).sum() for b in range(15)])
    assert legend(upper) == ["exact", "en", "zh"]


def test_the_gaps_that_reliability_draws_sum_to_the_ece_of_the_metrics(drawn: Draw) -> None:
    random = np.random.default_rng(1)
    logits = random.normal(size=(80, 4))
    log_probs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    truth = random.integers(0, 4, 80)
    probabilities = np.exp(log_probs)
    given = {"en": (probabilities.max(axis=1), probabilities.argmax(axis=1) == truth)}
    upper, lower = drawn(plots.draw_reliability, given)
    counts = np.array([patch.get_height() for patch in lower.patches])
    (marks,) = points(upper)
    ece = (counts[counts > 0] * np.abs(marks[:, 0] - marks[:, 1])).sum() / counts.sum()
    assert ece == pytest.approx(calibration_metrics(truth, log_probs)["ece"])


# --- scores -----------------------------------------------------------------------------------------------------------


def test_score_scatter_draws_every_answer_and_tells_intervals_that_miss_by_colour(drawn: Draw) -> None:
    truth, value = np.array([-1.0, 0.1, 2.0]), np.array([-0.5, 0.3, 0.5])
    intervals = np.array([[-1.0, 0.0], [0.0, 0.6], [0.0, 1.0]])  # the last misses; the first holds by its end
    (axes,) = drawn(plots.draw_score_scatter, truth, value, intervals, (-3.0, 3.0))
    inside, outside = points(axes)
    np.testing.assert_allclose(inside, [[-1.0, -0.5], [0.1, 0.3]])
    np.testing.assert_allclose(outside, [[2.0, 0.5]])
    segments = [np.asarray(s) for c in axes.collections if isinstance(c, LineCollection) for s in c.get_segments()]
    np.testing.assert_allclose([s[:, 1] for s in segments], intervals)
    np.testing.assert_allclose([s[0, 0] for s in segments], truth)
    assert axes.get_xlim() == axes.get_ylim() == (-3.3, 3.3)
    diagonal = lines(axes)["answer = truth"]
    np.testing.assert_array_equal(diagonal[:, 0], diagonal[:, 1])


def test_score_scatter_does_without_intervals(drawn: Draw) -> None:
    (axes,) = drawn(plots.draw_score_scatter, np.array([0.0, 1.0]), np.array([0.5, 0.5]), None, (-1.0, 1.0))
    np.testing.assert_allclose(points(axes), [[[0.0, 0.5], [1.0, 0.5]]])
    assert legend(axes) == ["answer = truth"]


def test_coverage_draws_a_line_a_language_beside_the_diagonal(drawn: Draw) -> None:
    levels = [0.1, 0.5, 0.9]
    (axes,) = drawn(plots.draw_coverage, levels, {"en": [0.2, 0.4, 0.8], "zh": [0.0, 0.5, 1.0]})
    found = lines(axes)
    assert list(found) == ["exact", "en", "zh"]
    np.testing.assert_allclose(found["en"], [[0.1, 0.2], [0.5, 0.4], [0.9, 0.8]])
    np.testing.assert_allclose(found["zh"], [[0.1, 0.0], [0.5, 0.5], [0.9, 1.0]])


# --- gates ------------------------------------------------------------------------------------------------------------


def test_group_bars_have_the_given_means_spreads_and_names_and_stand_side_by_side(drawn: Draw) -> None:
    mean, spread = np.array([[0.2, 0.8], [0.6, 0.4]]), np.array([[0.05, 0.1], [0.15, 0.2]])
    (axes,) = drawn(plots.draw_group_bars, ["joy", "anger"], ["E1", "E2"], mean, spread, "weight", 0.5)
    bars = [c for c in axes.containers if type(c).__name__ == "BarContainer"]
    assert [heights(bar) for bar in bars] == mean.T.tolist()
    assert [bar.get_label() for bar in bars] == legend(axes) == ["E1", "E2"]
    for j, bar in enumerate(bars):
        (whiskers,) = bar.errorbar.lines[2]
        ends = np.array([segment[:, 1] for segment in whiskers.get_segments()])
        np.testing.assert_allclose(ends, np.stack([mean[:, j] - spread[:, j], mean[:, j] + spread[:, j]], axis=1))
    spans = sorted((p.get_x(), p.get_x() + p.get_width()) for bar in bars for p in bar)
    assert all(left[1] <= right[0] for left, right in itertools.pairwise(spans))
    assert ticks(axes.get_xticklabels()) == ["joy", "anger"]
    assert [line.get_ydata()[0] for line in axes.lines] == [0.5]


def test_group_bars_of_one_group_and_one_part_below_zero_have_a_zero_line(drawn: Draw) -> None:
    (axes,) = drawn(plots.draw_group_bars, ["en"], ["1"], np.array([[-0.3]]), np.array([[0.1]]), "cosine")
    assert [heights(c) for c in axes.containers if type(c).__name__ == "BarContainer"] == [[-0.3]]
    assert [line.get_ydata()[0] for line in axes.lines] == [0]


def test_group_heat_writes_every_mean_where_it_is_coloured(drawn: Draw) -> None:
    mean = np.array([[0.11, 0.52, 0.93], [-0.24, 0.0, 0.35]])
    axes, _ = drawn(plots.draw_group_heatmap, ["joy", "anger"], ["a", "b", "c"], mean)
    shown = {(int(t.get_position()[1]), int(t.get_position()[0])): float(t.get_text()) for t in axes.texts}
    assert shown == {(i, j): mean[i, j] for i in range(2) for j in range(3)}
    np.testing.assert_allclose(axes.images[0].get_array(), mean)
    assert (ticks(axes.get_yticklabels()), ticks(axes.get_xticklabels())) == (["joy", "anger"], ["a", "b", "c"])


def test_turns_draws_a_line_a_gate_in_the_order_of_turns(drawn: Draw) -> None:
    values = np.array([[0.1, 0.9], [0.4, 0.6], [0.7, 0.2]])
    (axes,) = drawn(plots.draw_turns, values, ["text", "audio"], ["0 A: joy", "1 B: fear", "2 A: joy"], "gate")
    for j, name in enumerate(("text", "audio")):
        np.testing.assert_allclose(lines(axes)[name], np.column_stack([range(3), values[:, j]]))
    assert ticks(axes.get_xticklabels()) == ["0 A: joy", "1 B: fear", "2 A: joy"]
    assert axes.get_ylabel() == "gate"
    assert len({(line.get_linestyle(), line.get_marker(), line.get_color()) for line in axes.lines}) == 2


def test_embedding_draws_every_point_once_with_the_colour_of_its_class_and_the_legend_names_those_that_occur(
    drawn: Draw,
) -> None:
    given = np.arange(12, dtype=float).reshape(6, 2)
    classes = ["joy", "fear", "joy", "anger", "fear", "joy"]
    languages = ["en", "en", "zh", "zh", "zh", "en"]
    (axes,) = drawn(plots.draw_embedding, given, classes, ["joy", "sadness", "fear", "anger"], languages)
    assert sorted(map(tuple, np.concatenate(points(axes)))) == sorted(map(tuple, given))
    order = ["joy", "sadness", "fear", "anger"]
    for scatter in axes.collections:
        assert isinstance(scatter, PathCollection)
        for x, _ in np.asarray(scatter.get_offsets()):
            wanted = plots.pick_colour(order.index(classes[int(x) // 2]), len(order))
            assert matplotlib.colors.to_hex(scatter.get_facecolors()[0]) == matplotlib.colors.to_hex(wanted)
    assert legend(axes) == ["joy", "fear", "anger", "en", "zh"]


def test_embedding_of_one_language_has_no_language_in_its_legend(drawn: Draw) -> None:
    (axes,) = drawn(plots.draw_embedding, np.zeros((2, 2)), ["joy", "fear"], ["joy", "fear"], ["zh", "zh"])
    assert legend(axes) == ["joy", "fear"]


# --- training ---------------------------------------------------------------------------------------------------------


def test_curves_draw_each_series_and_start_at_zero_only_where_nothing_is_negative(drawn: Draw) -> None:
    series = {"total": ([0.5, 1.0], [2.0, 1.0]), "lm": ([1.0], [0.7])}
    (axes,) = drawn(plots.draw_curves, series, "training loss")
    np.testing.assert_allclose(lines(axes)["total"], [[0.5, 2.0], [1.0, 1.0]])
    np.testing.assert_allclose(lines(axes)["lm"], [[1.0, 0.7]])
    assert axes.get_ylim()[0] == 0
    assert (axes.get_xlabel(), axes.get_ylabel(), legend(axes)) == ("epoch", "training loss", ["total", "lm"])
    (axes,) = drawn(plots.draw_curves, {"score": ([1.0, 2.0], [-0.4, 0.1])}, "validation score")
    assert axes.get_ylim()[0] < -0.4


def test_many_classes_and_parts_still_render() -> None:
    names = [f"class-{i}" for i in range(12)]
    random = np.random.default_rng(0)
    for image in (
        plots.draw_confusion(random.integers(0, 9, (12, 12)), names),
        plots.draw_group_bars(names, ["a", "b", "c"], random.random((12, 3)), random.random((12, 3)), "gate"),
    ):
        assert png(image.address).ndim == 3


def test_trajectories_draw_every_step_and_mark_start_and_end(drawn: Draw) -> None:
    way = np.random.default_rng(0).normal(size=(4, 3, 2))
    (axes,) = drawn(plots.draw_trajectories, way, ["joy", "fear", "anger"], "label embeddings")
    for i, line in enumerate(axes.lines):
        np.testing.assert_array_equal(line.get_xydata(), way[:, i])
    marks = points(axes)
    np.testing.assert_array_equal(np.concatenate(marks), np.concatenate([way[[0, -1], i] for i in range(3)]))
    assert legend(axes) == ["joy", "fear", "anger"]
