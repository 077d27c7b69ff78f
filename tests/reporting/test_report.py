"""The report's page: self-contained, well formed, complete beside every score, and drawn from the files' own numbers."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from test_facts import (
    EMOTION,
    SENTIMENT,
    SHUFFLED,
    USED,
    Answers,
    diagnostics_of,
    emotion,
    emotions,
    mostly,
    seldom,
    sentiment,
    sentiments,
    written,
)

from llm_mer.adapters.egmf import EXPERTS
from llm_mer.checkpoints.description import TRAJECTORIES
from llm_mer.errors import UserError
from llm_mer.evaluation.conditions import AS_IS, GENERATION
from llm_mer.evaluation.rows import Evaluation, Row, score_rows
from llm_mer.evaluation.subsets import EVERYTHING
from llm_mer.inference.prediction import Prediction
from llm_mer.reporting import plots, report
from llm_mer.reporting.blocks import Picture, Section, Table
from llm_mer.reporting.facts import load_evaluation
from llm_mer.reporting.report import ReportConfig, build_page
from llm_mer.reporting.sections.adapter import feature_section, gate_section
from llm_mer.reporting.sections.answers import confusion_section, merge_rare_classes, score_plot_section
from llm_mer.reporting.sections.examples import inference_section
from llm_mer.reporting.sections.scores import noise_section, score_section
from llm_mer.reporting.sections.training import training_section
from llm_mer.reporting.wording import format_interval, format_number, metric_label

VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}
MARKUP = "<script>alert('x')</script>\"><img src=x onerror=alert(1)>&amp;"


# --- reading a page ---------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """What a page holds; fails on a tag that is closed in the wrong place or never."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self.styles: list[str] = []
        self.tables: list[list[list[list[str]]]] = []
        self.by_section: dict[str, list[list[list[list[str]]]]] = {}
        self.open: list[str] = []
        self.section = ""
        self.feed(text)
        self.close()
        assert self.open == [], f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        assert len(values) == len(attrs), f"<{tag}> has an attribute twice"
        self.elements.append((tag, values))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "section":
            self.section = values["id"]
        if tag == "table":
            self.tables.append([])
            self.by_section.setdefault(self.section, []).append(self.tables[-1])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append([])

    def handle_endtag(self, tag: str) -> None:
        assert tag not in VOID, f"</{tag}>"
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag, f"</{tag}> in the wrong place"

    def handle_data(self, data: str) -> None:
        if self.open[-1:] == ["style"]:
            self.styles.append(data)
        elif data.strip():
            self.texts.append(data)
            if "table" in self.open and self.open[-1] in ("td", "th", "small"):
                self.tables[-1][-1][-1].append(data.strip())

    def named(self, tag: str) -> list[dict[str, str]]:
        return [values for name, values in self.elements if name == tag]

    @property
    def text(self) -> str:
        return "\n".join(self.texts)


def table_of(page: Page, section: str, index: int = 0) -> tuple[list[str], list[list[list[str]]]]:
    """Column names and rows of a section's table; a cell is its text and the smaller lines under it."""
    head, *rows = page.by_section[section][index]
    assert all(len(row) == len(head) for row in rows), f"ragged table in {section}"
    return [" ".join(cell) for cell in head], rows


def row_of(rows: list[list[list[str]]], *words: str) -> list[list[str]]:
    (found,) = [row for row in rows if [cell[0] for cell in row[: len(words)]] == list(words)]
    return found


# --- making evaluations -----------------------------------------------------------------------------------------------


def diagnosed(predictions: Sequence[Prediction], make: Callable[[int], dict[str, Any]]) -> list[Prediction]:
    """The same answers with diagnostics by index."""
    for index, prediction in enumerate(predictions):
        prediction.diagnostics = make(index)
    return list(predictions)


def weights(index: int) -> dict[str, Any]:
    """Expert weights that sum to 1, and fused features."""
    random = np.random.default_rng(index)
    return {
        "expert_weights": random.dirichlet(np.ones(3)).round(5).tolist(),
        "features": random.normal(size=5).round(5).tolist(),
    }


LOG = [
    {"epoch": 0.5, "loss": 2.0, "loss_lm": 1.5, "learning_rate": 1e-3, "grad_norm": 3.0},
    {"epoch": 1.0, "loss": 1.0, "loss_lm": 0.75},
    {"epoch": 1.0, "eval_loss": 1.25, "eval_score": 0.5},
    {"epoch": 1.0, "train_runtime": 3.0, "train_loss": 1.5},
]


def whole(folder: Path) -> ReportConfig:
    """A checkpoint with everything a report can show, its text-only counterpart, and answers of infer.py."""
    answers: Answers = {
        AS_IS: [*diagnosed(emotions(40, mostly), weights), *diagnosed(sentiments(40, 0.2), weights)],
        SHUFFLED: [*emotions(40, seldom), *sentiments(40, 1.5)],
    }
    for index, prediction in enumerate(answers[AS_IS]):
        prediction.generated = "unreadable" if index % 8 == 0 else str(prediction.value)
        prediction.parsed = None if index % 8 == 0 else prediction.value
        prediction.dialogue_id, prediction.turn, prediction.speaker = f"d{index // 5}", index % 5, "AB"[index % 2]
    checkpoint = {
        "backbone": "tiny",
        "parameters": {"trainable": 1234, "total": 56789},
        "seed": 7,
        "trained_on": {"source": "store", "fingerprint": "0123456789abcdef"},
        "versions": {"torch": "2"},
    }
    place = written(folder / "run" / "evaluation", answers, checkpoint=checkpoint, name="run", warnings=["a gate is stuck"])
    evaluation = Evaluation.load(place)
    for task in (EMOTION, SENTIMENT):
        evaluation.rows += score_rows(
            GENERATION, answers[AS_IS], task, evaluation.resamples, evaluation.seed, use_parsed=True
        )
    evaluation.save(place)
    (folder / "run" / "log_history.json").write_text(json.dumps(LOG), encoding="utf-8")
    reads = [*emotions(40, lambda i: seldom(i) if i < 20 else mostly(i)), *sentiments(40, 0.6)]
    written(folder / "text", {AS_IS: reads}, checkpoint={"modalities": ["text"]}, name="reader")
    lines = [
        {"id": "one", "task": "emotion", "language": "en", "value": "joy", "probabilities": {"joy": 0.625}},
        {"id": "two", "task": "sentiment", "language": "zh", "value": 1.2, "interval": [0.5, 2.0], "generated": "1.2"},
        {"id": "three", "error": "no such clip"},
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "answers.jsonl").write_text(text, encoding="utf-8")
    return ReportConfig(
        evaluations=[str(folder / "run")],
        text_only=str(folder / "text"),
        inference=str(folder / "answers.jsonl"),
        facts="quickstart",
        output=str(folder / "out" / "report.html"),
    )


@dataclass
class Made:
    """A page written by ``llm-mer report``, what was printed, and the options."""

    config: ReportConfig
    text: str
    printed: str
    page: Page


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """The whole page with its real pictures, written once."""
    config = whole(tmp_path_factory.mktemp("report"))
    printed = report.run(config)
    text = Path(config.output).read_text(encoding="utf-8")
    return Made(config, text, printed, Page(text))


@dataclass
class Drawn:
    """Figures kept instead of rendered; a picture's address is the number of its figure."""

    figures: list[Figure] = field(default_factory=list)

    def keep(self, figure: Figure) -> plots.Image:
        self.figures.append(figure)
        return plots.Image(f"data:,{len(self.figures) - 1}", 100)

    def of(self, picture: Picture) -> Figure:
        return self.figures[int(picture.image.address.partition(",")[2])]

    def lines(self, picture: Picture) -> dict[str, np.ndarray]:
        (axes,) = self.of(picture).axes
        return {str(line.get_label()): np.asarray(line.get_xydata()) for line in axes.lines}

    def bars(self, picture: Picture) -> dict[str, list[float]]:
        (axes,) = self.of(picture).axes
        bars = [c for c in axes.containers if type(c).__name__ == "BarContainer"]
        return {str(bar.get_label()): [patch.get_height() for patch in bar] for bar in bars}  # type: ignore[attr-defined]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Drawn:
    kept = Drawn()
    monkeypatch.setattr(plots, "encode_png", kept.keep)
    return kept


def page_of(*folders: Path, **options: Any) -> Page:
    text, _ = build_page(ReportConfig(evaluations=[str(folder) for folder in folders], **options))
    return Page(text)


def picture_of(section: Section, start: str) -> Picture:
    (found,) = [block for block in section.blocks if isinstance(block, Picture) and block.caption.startswith(start)]
    return found


# --- the page itself --------------------------------------------------------------------------------------------------


def test_the_page_is_one_file_that_loads_nothing(made: Made) -> None:
    forbidden = {"script", "link", "iframe", "object", "embed", "base", "form", "video", "audio", "source"}
    assert forbidden.isdisjoint(tag for tag, _ in made.page.elements)
    for tag, values in made.page.elements:
        for name, value in values.items():
            assert not name.startswith("on"), f"<{tag} {name}>"
            assert name not in ("srcset", "action", "background", "poster", "data"), f"<{tag} {name}>"
            assert not re.search(r"(https?:)?//|javascript:", value) or value.startswith("data:image/png;base64,"), value[
                :80
            ]
        if "src" in values:
            assert (tag, values["src"][:22]) == ("img", "data:image/png;base64,")
    styles = "".join(made.page.styles) + "".join(values.get("style", "") for _, values in made.page.elements)
    assert "url(" not in styles
    assert "@import" not in styles
    (policy,) = [v["content"] for v in made.page.named("meta") if v.get("http-equiv") == "Content-Security-Policy"]
    assert "default-src 'none'" in policy


def test_every_picture_is_a_whole_png_with_its_caption_as_words(made: Made) -> None:
    pictures = made.page.named("img")
    assert len(pictures) >= 10
    for values in pictures:
        content = base64.b64decode(values["src"].partition(",")[2], validate=True)
        assert content.startswith(b"\x89PNG\r\n\x1a\n")
        assert content.endswith(b"IEND\xaeB`\x82")
        assert "n=" in values["alt"]
        assert values["alt"] in made.page.text


def test_the_page_is_well_formed_with_contents_that_lead_to_its_sections(made: Made) -> None:
    assert made.text.startswith("<!DOCTYPE html>")  # balance itself is checked while parsing
    for tag in ("html", "head", "title", "body", "main", "h1"):
        assert len(made.page.named(tag)) == 1, tag
    assert made.page.named("html")[0]["lang"] == "en"
    assert made.page.named("meta")[0]["charset"] == "utf-8"
    identities = [values["id"] for _, values in made.page.elements if "id" in values]
    assert len(set(identities)) == len(identities)
    assert [values["href"] for values in made.page.named("a")] == [f"#{name}" for name in identities]
    assert [values["id"] for values in made.page.named("section")] == identities


def test_a_page_of_everything_has_every_section(made: Made) -> None:
    wanted = (
        "facts warnings scores classes subsets conditions systems confusion score-plots calibration gates features training"
    )
    assert [v["id"] for v in made.page.named("section")] == [*wanted.split(), "examples", "inference"]
    assert "run: a gate is stuck" in made.page.text


def test_run_writes_what_it_says_and_prints_the_facts(made: Made) -> None:
    assert f"written to {made.config.output} ({len(made.text.encode()) / 1024:.0f} KiB)" in made.printed
    assert [line.rpartition(": ")[2] for line in made.printed.splitlines() if line[:1].isdigit()] == ["holds"] * 3


def test_the_same_files_give_the_same_page(tmp_path: Path) -> None:
    folder = written(tmp_path / "x", {AS_IS: diagnosed(emotions(8, mostly, ["en"]), weights)}, [EMOTION])
    first, second = (build_page(ReportConfig(evaluations=[str(folder)]))[0] for _ in range(2))
    assert first == second


# --- scores -----------------------------------------------------------------------------------------------------------


def evaluation_of(made: Made) -> Evaluation:
    return load_evaluation(made.config.evaluations[0]).evaluation


def row(evaluation: Evaluation, *where: str) -> Row:
    found = evaluation.find(*where)
    assert found is not None, where
    return found


@pytest.mark.parametrize(("index", "task"), [(0, "emotion"), (1, "sentiment")])
def test_every_score_stands_in_its_column_with_n_baseline_interval_and_unparseable_rate(
    made: Made, index: int, task: str
) -> None:
    evaluation = evaluation_of(made)
    columns, rows = table_of(made.page, "scores", index)
    assert columns == ["metric", "en", "zh", "all languages"]
    places = [row(evaluation, AS_IS, task, language) for language in ("en", "zh", EVERYTHING)]
    assert [cell[0] for cell in row_of(rows, "utterances n")[1:]] == [str(r.n) for r in places] == ["40", "40", "80"]
    assert [cell[0] for cell in row_of(rows, "unparseable rate ↓")[1:]] == ["0.000"] * 3
    names = [name for name in places[0].metrics if name != "n_scored" and not name.startswith("f1/")]
    assert len(rows) == len(names) + 2
    for name in names:
        for cell, place in zip(row_of(rows, metric_label(name))[1:], places, strict=True):
            expected = [format_number(place.metrics[name])]
            expected += [format_interval(place.intervals[name])] if name in place.intervals else []
            expected += [f"baseline {format_number(place.baseline[name])}"] if name in place.baseline else []
            assert cell == expected, name
    headline = "accuracy ↑" if task == "emotion" else "MAE ↓"
    assert all(len(cell) == 3 for cell in row_of(rows, headline)[1:])


def test_the_probability_outside_the_answers_stands_by_language_where_a_language_model_answered(tmp_path: Path) -> None:
    answers = emotions(40, mostly)
    for answer in answers:
        answer.outside_mass = float(np.log(0.25 if answer.language == "en" else 0.5))
    found = load_evaluation(str(written(tmp_path / "evaluation", {AS_IS: answers})))
    (table,) = [block for block in score_section(found).blocks if isinstance(block, Table)]
    shown = {line[0].text: [cell.text for cell in line[1:]] for line in table.rows}
    assert shown["probability outside the answers ↓"] == ["0.25", "0.5", "0.375"]


@pytest.mark.parametrize(
    ("index", "task", "metrics"), [(0, "emotion", ("accuracy", "weighted_f1")), (1, "sentiment", ("mae", "corr"))]
)
def test_every_subset_has_its_own_n_baseline_interval_and_unparseable_rate(
    made: Made, index: int, task: str, metrics: Sequence[str]
) -> None:
    evaluation = evaluation_of(made)
    columns, rows = table_of(made.page, "subsets", index)
    assert columns[:3] == ["subset", "language", "n"]
    assert columns[-1] == "unparseable"
    assert len(rows) == 6  # two subsets, two languages and both together
    for subset in (EVERYTHING, "neutral_words"):
        for language, word in (("en", "en"), ("zh", "zh"), (EVERYTHING, "all languages")):
            place = row(evaluation, AS_IS, task, language, subset)
            shown = row_of(rows, subset, word)[2:]
            expected = [[str(place.n)]]
            for metric in metrics:
                expected += [
                    [format_number(place.metrics[metric]), format_interval(place.intervals[metric])],
                    [format_number(place.baseline[metric])],
                ]
            assert shown == [*expected, [format_number(place.unparseable_rate)]]


def test_every_class_has_its_precision_recall_and_f1(tmp_path: Path, drawn: Drawn) -> None:
    # joy: 3 utterances, 2 found, answered 3 times; fear: 1 utterance, never answered; anger: answered once, never true.
    truth = ["joy", "joy", "joy", "fear", "sadness"]
    value = ["joy", "joy", "anger", "joy", "sadness"]
    answers = [emotion(str(i), t, v) for i, (t, v) in enumerate(zip(truth, value, strict=True))]
    page = page_of(written(tmp_path / "x", {AS_IS: answers}, [EMOTION]))
    columns, rows = table_of(page, "classes")
    assert columns == ["class", "language", "n", "answered", "precision ↑", "recall ↑", "F1 ↑"]
    found = {line[0][0]: [cell[0] for cell in line[2:]] for line in rows}
    assert found["joy"] == ["3", "3", "0.667", "0.667", "0.667"]
    assert found["fear"] == ["1", "0", "–", "0.000", "0.000"]
    assert found["anger"] == ["0", "1", "0.000", "–", "0.000"]
    assert found["sadness"] == ["1", "1", "1.000", "1.000", "1.000"]
    assert found["surprise"] == ["0", "0", "–", "–", "–"]


NOISY = {"missing rate 0.2": 0.2, "missing rate 0.6": 0.6}


def test_damage_is_drawn_over_its_amount_with_interval_and_baseline_and_its_area_stands_below(
    tmp_path: Path, drawn: Drawn
) -> None:
    from llm_mer.evaluation.conditions import Condition
    from llm_mer.evaluation.curves import areas

    answers = {AS_IS: emotions(40, mostly), "missing rate 0.6": emotions(40, seldom)}
    answers |= {"missing rate 0.2": emotions(40, lambda i: i % 2 == 0), "audio at 10 dB": emotions(40, seldom)}
    conditions = [Condition(name, "missing", amount=amount) for name, amount in NOISY.items()]
    conditions += [Condition("audio at 10 dB", "audio_snr", amount=10.0), Condition("without text", "without", ("text",))]
    place = written(tmp_path / "x", answers, [EMOTION], conditions=conditions)
    evaluation = Evaluation.load(place)
    evaluation.areas = areas(evaluation.rows, evaluation.conditions, AS_IS)
    evaluation.save(place)
    section = noise_section(load_evaluation(str(place)))
    missing, noise = (block for block in section.blocks if isinstance(block, Picture))
    lines = drawn.lines(missing)
    for language in ("en", "zh"):
        expected = [row(evaluation, name, "emotion", language).metrics["weighted_f1"] for name in (AS_IS, *NOISY)]
        assert lines[language] == pytest.approx(np.array([[0.0, 0.2, 0.6], expected]).T)
        assert row(evaluation, "missing rate 0.2", "emotion", language).metrics["accuracy"] == pytest.approx(0.5)
    (axes,) = drawn.of(missing).axes
    bands = [collection.get_paths()[0].vertices for collection in axes.collections]
    low, high = row(evaluation, "missing rate 0.6", "emotion", "en").intervals["weighted_f1"]
    at_end = [float(y) for x, y in bands[0] if x == 0.6]
    assert (min(at_end), max(at_end)) == pytest.approx((low, high))
    (axes,) = drawn.of(noise).axes
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["as is", "10"]
    assert axes.get_xticks()[0] < axes.get_xticks()[1], "noise grows to the right"
    _, rows = table_of(page_of(place), "noise")
    (area,) = (a for a in evaluation.areas if (a.language, a.metric) == ("en", "accuracy"))
    shown = row_of(rows, "missing", "emotion", "en", "accuracy ↑")
    assert [cell[0] for cell in shown[4:]] == ["0 to 0.6", format_number(area.area), format_number(area.mean)]


def test_lengths_and_turns_have_tables_of_their_own_and_no_column_among_the_conditions(tmp_path: Path, drawn: Drawn) -> None:
    answers = emotions(20, mostly)
    for index, prediction in enumerate(answers):
        prediction.length, prediction.position = 1 + index % 12, 1 + index % 3
    place = written(tmp_path / "x", {AS_IS: answers}, [EMOTION])
    evaluation = Evaluation.load(place)
    evaluation.rows = score_rows(AS_IS, answers, EMOTION, 20, 0, by=["length", "turn"])
    evaluation.save(place)
    page = page_of(place)
    shown = [{line[0][0] for line in table_of(page, "subsets", i)[1]} for i in range(3)]
    assert shown[1] == {
        "all",
        *(f"length {span} {unit}" for span in ("1-5", "6-10", "11-20") for unit in ("words", "characters")),
    }
    assert shown[2] == {"all", "turn 1", "turns 2-4"}
    columns, _ = table_of(page, "conditions")
    assert not any("length" in column or "turn" in column for column in columns)


def test_every_condition_has_its_scores_over_one_baseline_and_its_unparseable_rate(made: Made) -> None:
    evaluation = evaluation_of(made)
    columns, rows = table_of(made.page, "conditions", 0)
    assert columns == ["condition", "en, n=40", "zh, n=40", "all languages, n=80", "neutral_words, n=40", "unparseable"]
    places = [("en", EVERYTHING), ("zh", EVERYTHING), (EVERYTHING, EVERYTHING), (EVERYTHING, "neutral_words")]
    baselines = [row(evaluation, AS_IS, "emotion", *place).baseline["weighted_f1"] for place in places]
    assert [cell[0] for cell in row_of(rows, "baseline")[1:-1]] == [format_number(b) for b in baselines]
    for condition in (AS_IS, SHUFFLED, GENERATION):
        for cell, place in zip(row_of(rows, condition)[1:-1], places, strict=True):
            found = row(evaluation, condition, "emotion", *place)
            assert cell == [format_number(found.metrics["weighted_f1"]), format_interval(found.intervals["weighted_f1"])]
        rate = row(evaluation, condition, "emotion").unparseable_rate
        assert row_of(rows, condition)[-1] == [format_number(rate)]
    assert row(evaluation, GENERATION, "emotion").unparseable_rate == 0.125


def test_the_folded_table_holds_every_row_of_the_evaluation(made: Made) -> None:
    evaluation = evaluation_of(made)
    columns, rows = table_of(made.page, "conditions", 2)
    assert columns[4:] == ["n", "scores, 95 % interval", "baseline", "unparseable"]
    assert len(rows) == len(evaluation.rows)
    for cells, place in zip(rows, evaluation.rows, strict=True):
        assert [cell[0] for cell in cells[:5]] == [place.condition, place.task, place.language, place.subset, str(place.n)]
        for text, metric in zip(cells[5], place.intervals, strict=True):
            assert f"{format_number(place.metrics[metric])} {format_interval(place.intervals[metric])}" in text
        for text, metric in zip(cells[6], place.intervals, strict=True):
            assert text.endswith(format_number(place.baseline[metric]))
        assert cells[7] == [format_number(place.unparseable_rate)]


def test_systems_stand_side_by_side_each_with_its_n_baseline_interval_and_unparseable_rate(made: Made) -> None:
    assert made.config.text_only is not None
    for name, place in (("1. run", made.config.evaluations[0]), ("2. reader", made.config.text_only)):
        evaluation = load_evaluation(place).evaluation
        for index, (task, metric) in enumerate((("emotion", "weighted_f1"), ("sentiment", "corr"))):
            _, rows = table_of(made.page, "systems", index)
            cells = row_of(rows, name)
            assert cells[1] == (["1,234"] if name == "1. run" else ["–"])
            for cell, language in zip(cells[2:], ("en", "zh", EVERYTHING), strict=True):
                found = row(evaluation, AS_IS, task, language)
                assert cell == [
                    format_number(found.metrics[metric]),
                    format_interval(found.intervals[metric]),
                    f"n={found.n}, baseline {format_number(found.baseline[metric])}",
                    f"unparseable {format_number(found.unparseable_rate)}",
                ]


def test_a_row_with_an_unreadable_score_shows_its_rate_and_not_a_number_for_what_is_missing(
    tmp_path: Path, drawn: Drawn
) -> None:
    answers = [sentiment(str(i), i / 4, i / 4, generated="?") for i in range(6)]
    folder = written(tmp_path / "x", {AS_IS: answers}, [SENTIMENT])
    evaluation = Evaluation.load(folder)
    evaluation.rows += score_rows(GENERATION, answers, SENTIMENT, 20, 0, use_parsed=True)
    evaluation.save(folder)
    _, rows = table_of(page_of(folder), "conditions", 0)
    assert row_of(rows, GENERATION)[1:] == [["–"], ["1.000"]]


# --- facts ------------------------------------------------------------------------------------------------------------


def test_facts_that_hold_and_that_do_not_are_told_apart_by_word_and_colour(tmp_path: Path, drawn: Drawn) -> None:
    answers = {AS_IS: [*emotions(40, mostly, ["en"]), *emotions(40, seldom, ["zh"])], SHUFFLED: emotions(40, seldom)}
    page = page_of(written(tmp_path / "x", answers, [EMOTION]), facts="quickstart")
    tones = [v["class"].split()[1] for v in page.named("div") if v.get("class", "").startswith("fact ")]
    assert tones == ["bad", "good", "unsure"]
    verdicts = [text for text in page.texts if text in ("holds", "does not hold", "cannot be judged")]
    assert verdicts == ["does not hold", "holds", "cannot be judged"]
    _, rows = table_of(page, "facts", 0)
    assert [(r[0][0], r[-1][0]) for r in rows] == [("en emotion accuracy", "yes"), ("zh emotion accuracy", "no")]
    assert "Why: no text-only evaluation was given (--text_only)." in page.text


def test_every_number_of_a_fact_has_n_and_an_interval_on_the_page(made: Made) -> None:
    for table in made.page.by_section["facts"]:
        head, *rows = table
        assert [cell[0] for cell in head] == ["what", "value, 95 % interval", "n", "beside", "by the rule"]
        for _, value, n, *_ in rows:
            assert len(value) == 2
            assert value[1].startswith("[")
            assert int(n[0]) > 0
    assert len(made.page.by_section["facts"]) == 3


def test_only_a_page_with_the_facts_says_by_itself_that_the_corpus_is_synthetic(tmp_path: Path, drawn: Drawn) -> None:
    folder = written(tmp_path / "x", {AS_IS: emotions(8, mostly)}, [EMOTION])
    assert report.SYNTHETIC_NOTE not in page_of(folder).text
    assert report.SYNTHETIC_NOTE in page_of(folder, facts="quickstart").text
    noted = page_of(folder, facts="quickstart", note="real people", title="Mine")
    assert report.SYNTHETIC_NOTE not in noted.text
    assert "real people" in noted.text
    assert "Mine" in noted.texts


# --- text from files --------------------------------------------------------------------------------------------------


def hostile(folder: Path, text: str) -> Path:
    """An evaluation and an inference file with a text in every place a file can put one."""
    answers = [
        emotion(
            f"{text}{i}",
            USED[i % 4],
            "joy",
            tags=(text,),
            generated=text,
            parsed="joy",
            dialogue_id=text,
            turn=i,
            speaker=text,
            diagnostics={"odd_gate": [0.2, 0.8], text: [0.5, 0.5]},
        )
        for i in range(8)
    ]
    checkpoint = {name: text for name in ("adapter", "backbone", "seed")} | {
        "modalities": ["text"],
        "versions": {text: text},
    }
    checkpoint |= {"trained_on": {"source": text, "fingerprint": text}}
    place = written(folder, {AS_IS: answers}, [EMOTION], checkpoint, name=text, data=text, split=text, warnings=[text])
    lines = [
        {"id": text, "task": text, "language": text, "value": text, "generated": text},
        {"id": text, "error": text},
    ]
    content = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "answers.jsonl").write_text(content, encoding="utf-8")
    return place


def test_text_from_the_files_is_shown_as_text_and_never_becomes_markup(tmp_path: Path, drawn: Drawn) -> None:
    pages = []
    harmless = "w" * len(MARKUP)  # as long, for what is cut short
    for name, text in (("plain", harmless), ("hostile", MARKUP)):
        folder = hostile(tmp_path / name, text)
        inference = str(folder / "answers.jsonl")
        pages.append(page_of(folder, inference=inference, note=text, title=text, facts="quickstart"))
    plain, attacked = pages
    assert [tag for tag, _ in attacked.elements] == [tag for tag, _ in plain.elements]
    assert [sorted(values) for _, values in attacked.elements] == [sorted(values) for _, values in plain.elements]
    assert attacked.text.count(MARKUP) == plain.text.count(harmless) > 40
    assert any(MARKUP in values["alt"] for values in attacked.named("img"))


# --- pictures ---------------------------------------------------------------------------------------------------------


def test_confusion_counts_the_answers_of_each_language(tmp_path: Path, drawn: Drawn) -> None:
    loaded = load_evaluation(str(written(tmp_path / "x", {AS_IS: [*emotions(40, mostly), *sentiments(8, 0.2)]})))
    for language, block in zip(("en", "zh"), confusion_section(loaded).blocks, strict=True):
        assert isinstance(block, Picture)
        assert block.caption.startswith(f"emotion, {language}, n=40")
        (axes,) = drawn.of(block).axes
        counts = np.zeros((6, 6), dtype=int)
        for text in axes.texts:
            x, y = text.get_position()
            counts[int(y), int(x)] = int(text.get_text().split()[0])
        expected = np.zeros((6, 6), dtype=int)
        for p in loaded.known(AS_IS, "emotion", language):
            expected[EMOTION.label_names.index(str(p.truth)), EMOTION.label_names.index(str(p.value))] += 1
        np.testing.assert_array_equal(counts, expected)


def test_scores_are_drawn_over_their_truths_and_coverage_is_counted_anew(tmp_path: Path, drawn: Drawn) -> None:
    loaded = load_evaluation(str(written(tmp_path / "x", {AS_IS: sentiments(30, 0.2, ["en"])}, [SENTIMENT])))
    section = score_plot_section(loaded)
    scatter, coverage = (block for block in section.blocks if isinstance(block, Picture))
    known = loaded.known(AS_IS, "sentiment")
    (axes,) = drawn.of(scatter).axes
    offsets = np.concatenate([np.asarray(c.get_offsets()) for c in axes.collections if hasattr(c, "get_sizes")])
    assert sorted(map(tuple, offsets)) == sorted((float(p.truth or 0), float(p.value)) for p in known)
    found = drawn.lines(coverage)["en"]
    grid = np.array(SENTIMENT.grid())
    for level, share in found:
        inside = []
        for p in known:
            mass = np.cumsum(np.exp(p.log_probabilities))
            low, high = (grid[np.searchsorted(mass, q - 1e-9)] for q in ((1 - level) / 2, (1 + level) / 2))
            inside.append(low - 1e-6 <= float(p.truth or 0) <= high + 1e-6)
        assert share == pytest.approx(np.mean(inside)), level
    assert np.all(np.diff(found[:, 1]) >= 0)


def test_expert_weights_are_averaged_by_class_and_by_language(tmp_path: Path, drawn: Drawn) -> None:
    predictions = diagnosed(emotions(24, mostly), weights)
    loaded = load_evaluation(str(written(tmp_path / "x", {AS_IS: predictions}, [EMOTION])))
    section = gate_section(loaded)
    given = np.array([p.diagnostics["expert_weights"] for p in predictions])
    for what, groups in (("emotion", [n for n in EMOTION.label_names if n in USED]), ("language", ["en", "zh"])):
        of = [str(p.truth) if what == "emotion" else p.language for p in predictions]
        found = drawn.bars(picture_of(section, f"Expert weights α by {what}, n=48"))
        assert list(found) == list(EXPERTS)
        for j, heights in enumerate(found.values()):
            np.testing.assert_allclose(heights, [given[np.array(of) == g, j].mean() for g in groups])


def test_an_evaluation_without_titles_is_shown_under_its_keys(tmp_path: Path, drawn: Drawn) -> None:
    predictions = diagnosed(emotions(24, mostly), weights)
    folder = written(tmp_path / "x", {AS_IS: predictions}, [EMOTION])
    entry = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    assert [info["name"] for info in entry.pop("diagnostics")] == ["expert_weights", "feature_gate", "expert_cosine"]
    (folder / "evaluation.json").write_text(json.dumps(entry), encoding="utf-8")
    section = gate_section(load_evaluation(str(folder)))
    assert list(drawn.bars(picture_of(section, "expert_weights by emotion, n=48"))) == ["1", "2", "3"]
    assert "expert_weights by emotion" in page_of(folder).text


def test_training_curves_are_those_of_the_log(tmp_path: Path, drawn: Drawn) -> None:
    written(tmp_path / "run" / "evaluation", {AS_IS: emotions(8, mostly)}, [EMOTION])
    (tmp_path / "run" / "log_history.json").write_text(json.dumps(LOG), encoding="utf-8")
    section = training_section(load_evaluation(str(tmp_path / "run")))
    losses = drawn.lines(picture_of(section, "Training losses"))
    assert {name: line.tolist() for name, line in losses.items()} == {
        "total": [[0.5, 2.0], [1.0, 1.0]],
        "lm": [[0.5, 1.5], [1.0, 0.75]],
    }
    assert drawn.lines(picture_of(section, "Validation losses"))["total"].tolist() == [[1.0, 1.25]]
    assert drawn.lines(picture_of(section, "Validation score"))["score"].tolist() == [[1.0, 0.5]]
    assert len(section.blocks) == 3


def test_label_embeddings_are_drawn_by_label_on_the_plane_that_holds_most_of_their_way(tmp_path: Path, drawn: Drawn) -> None:
    diagnostics = diagnostics_of("lsgmer")
    written(tmp_path / "run" / "evaluation", {AS_IS: emotions(8, mostly)}, [EMOTION], diagnostics=diagnostics)
    random = np.random.default_rng(0)
    plane, flat = np.linalg.qr(random.normal(size=(9, 2)))[0], random.normal(size=(4, EMOTION.num_classes, 2))
    lines = [{"epoch": e, "name": "label_embeddings", "points": (flat[e] @ plane.T).tolist()} for e in range(4)]
    (tmp_path / "run" / TRAJECTORIES).write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    (tmp_path / "run" / "log_history.json").write_text(json.dumps(LOG), encoding="utf-8")
    section = training_section(load_evaluation(str(tmp_path / "run")))
    picture = picture_of(section, "Trajectory of the label embeddings")
    assert "epochs 0 (hollow) to 3 (full)" in picture.caption
    assert "100 % of the variance" in picture.caption
    legend = drawn.of(picture).axes[0].get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == list(EMOTION.label_names)
    ways = np.stack(list(drawn.lines(picture).values()), axis=1)  # (steps, n, 2)

    def distances(points: np.ndarray) -> np.ndarray:
        rows = points.reshape(-1, 2)
        return np.linalg.norm(rows[:, None] - rows[None], axis=-1)

    np.testing.assert_allclose(distances(ways), distances(flat), atol=1e-9)  # the plane may be turned, never bent


# --- adapters ---------------------------------------------------------------------------------------------------------


def conversation(name: str, width: int, turns: int = 6) -> list[Prediction]:
    """A conversation of six turns and a shorter one, out of order, with gates of which no two are the same."""
    random = np.random.default_rng(width)
    found = []
    for dialogue, count in (("long", turns), ("short", turns - 2)):
        for turn in range(count):
            found.append(
                emotion(
                    f"{dialogue}-{turn}",
                    USED[turn % 4],
                    "joy",
                    dialogue_id=dialogue,
                    turn=turn,
                    speaker="AB"[turn % 2],
                    diagnostics={name: random.random(width).round(5).tolist()},
                )
            )
    return [found[i] for i in random.permutation(len(found))]


@pytest.mark.parametrize(
    ("adapter", "name", "title", "parts"),
    [
        ("lpgnet", "multimodal_gate", "Multimodal gate", ["text", "audio", "vision"]),
        (
            "lpgnet",
            "unimodal_gate",
            "Gates of the attention paths",
            ["text←audio", "text←vision", "audio←text", "audio←vision", "vision←text", "vision←audio"],
        ),
        (
            "gated_xlstm",
            "stream_gates",
            "Stream gates",
            [f"{role} {m}" for role in ("speaker", "interlocutor") for m in ("text", "audio", "vision")],
        ),
    ],
)
def test_gates_over_a_conversation_are_drawn_turn_by_turn(
    adapter: str, name: str, title: str, parts: list[str], tmp_path: Path, drawn: Drawn
) -> None:
    predictions = conversation(name, len(parts))
    options: dict[str, Any] = {"use_intra": False} if name == "unimodal_gate" else {}
    diagnostics = diagnostics_of(adapter, **options)
    folder = written(tmp_path / "x", {AS_IS: predictions}, [EMOTION], {"adapter": adapter}, diagnostics=diagnostics)
    picture = picture_of(
        gate_section(load_evaluation(str(folder))), f"{title} along the longest conversation, long (en), n=6"
    )
    members = sorted((p for p in predictions if p.dialogue_id == "long"), key=lambda p: p.turn or 0)
    found = drawn.lines(picture)
    assert list(found) == parts
    for j, line in enumerate(found.values()):
        np.testing.assert_allclose(line, [(i, p.diagnostics[name][j]) for i, p in enumerate(members)])
    (axes,) = drawn.of(picture).axes
    assert [t.get_text() for t in axes.get_xticklabels()] == [f"{p.turn} {p.speaker}: {p.truth}" for p in members]
    assert f"{title} along the longest conversation" in page_of(folder).text


def test_conversations_of_two_turns_or_utterances_without_one_draw_no_line(tmp_path: Path, drawn: Drawn) -> None:
    short = conversation("multimodal_gate", 3, turns=2)
    alone = [emotion(str(i), "joy", "joy", diagnostics={"multimodal_gate": [0.1, 0.2, 0.3]}) for i in range(4)]
    for name, predictions in (("short", short), ("alone", alone)):
        section = gate_section(load_evaluation(str(written(tmp_path / name, {AS_IS: predictions}, [EMOTION]))))
        assert section.blocks
        assert not [b for b in section.blocks if isinstance(b, Picture) and "conversation" in b.caption]


def test_a_report_of_lsgmer_has_its_gates_similarities_to_each_label_and_the_drift_of_its_labels(
    tmp_path: Path, drawn: Drawn
) -> None:
    random = np.random.default_rng(0)

    def inside(_: int) -> dict[str, Any]:
        return {
            "fusion_weights": random.dirichlet(np.ones(3)).round(5).tolist(),
            "label_gate": random.random(2).round(5).tolist(),  # vision has none
            "label_focus": random.random(2).round(5).tolist(),
            "label_similarity": random.uniform(-1, 1, 6 + 7).round(5).tolist(),  # classes, then score bins
        }

    predictions = diagnosed(emotions(16, mostly), inside)
    diagnostics = diagnostics_of("lsgmer", label_gate_vision=False, num_score_bins=7)
    checkpoint = {"adapter": "lsgmer"}
    place = written(tmp_path / "run" / "evaluation", {AS_IS: predictions}, [EMOTION], checkpoint, diagnostics=diagnostics)
    log = [{"epoch": float(e), "loss": 1.0 / e, "label_drift": 0.5 / e} for e in (1, 2, 3)]
    (tmp_path / "run" / "log_history.json").write_text(json.dumps(log), encoding="utf-8")
    loaded = load_evaluation(str(place))
    section = gate_section(loaded)
    assert list(drawn.bars(picture_of(section, "Fusion weights by emotion"))) == ["text", "audio", "vision"]
    assert list(drawn.bars(picture_of(section, "Label gates by emotion"))) == ["text", "audio"]
    axes = drawn.of(picture_of(section, "Similarity to label embeddings by emotion")).axes[0]
    bins = [f"score bin {i}" for i in range(1, 8)]
    assert [t.get_text() for t in axes.get_xticklabels()] == [*EMOTION.label_names, *bins]
    given = np.array([p.diagnostics["label_similarity"] for p in predictions])
    truth = np.array([p.truth for p in predictions])
    groups = [n for n in EMOTION.label_names if n in USED]
    np.testing.assert_allclose(axes.images[0].get_array(), [given[truth == g].mean(axis=0) for g in groups])
    drift = picture_of(training_section(loaded), "How far the label embeddings moved")
    np.testing.assert_allclose(drawn.lines(drift)["mean over labels"], [[1, 0.5], [2, 0.25], [3, 0.5 / 3]])


# --- what may be missing ----------------------------------------------------------------------------------------------


def names_of(page: Page) -> list[str]:
    return [values["id"] for values in page.named("section")]


def test_one_language_is_one_column_and_no_row_stands_twice(tmp_path: Path, drawn: Drawn) -> None:
    folder = written(tmp_path / "x", {AS_IS: [*emotions(12, mostly, ["zh"]), *sentiments(12, 0.2, ["zh"])]})
    page = page_of(folder, folder)
    assert table_of(page, "scores")[0] == ["metric", "zh"]
    assert table_of(page, "conditions")[0] == ["condition", "zh, n=12", "neutral_words, n=6", "unparseable"]
    assert table_of(page, "systems")[0] == ["system", "trainable", "zh"]
    places = [tuple(cell[0] for cell in r[:4]) for r in table_of(page, "conditions", 2)[1]]
    assert len(places) == len(set(places)) == 4
    assert "all languages" not in page.text


def test_without_a_regression_task_there_are_no_score_plots_and_without_classes_no_confusion(
    tmp_path: Path, drawn: Drawn
) -> None:
    classes = names_of(page_of(written(tmp_path / "c", {AS_IS: emotions(12, mostly)}, [EMOTION])))
    assert ("score-plots" in classes, "confusion" in classes, "calibration" in classes) == (False, True, True)
    scored = diagnosed(sentiments(12, 0.2), weights)
    page = page_of(written(tmp_path / "s", {AS_IS: scored}, [SENTIMENT]))
    assert {"score-plots", "gates", "features"} <= set(names_of(page))
    assert {"confusion", "calibration"}.isdisjoint(names_of(page))
    assert "by sign of the true score" in page.text


def test_without_diagnostics_log_tags_and_second_system_their_sections_are_left_out(tmp_path: Path, drawn: Drawn) -> None:
    bare = [emotion(str(i), USED[i % 4], "joy") for i in range(8)]
    page = page_of(written(tmp_path / "x", {AS_IS: bare}, [EMOTION]))
    assert names_of(page) == ["warnings", "scores", "classes", "conditions", "confusion", "calibration", "examples"]
    assert "No warnings." in page.text


def test_diagnostics_that_only_some_answers_have_are_not_averaged(tmp_path: Path, drawn: Drawn) -> None:
    predictions = diagnosed(emotions(8, mostly), lambda i: weights(i) if i else {})
    loaded = load_evaluation(str(written(tmp_path / "x", {AS_IS: predictions}, [EMOTION])))
    assert gate_section(loaded).blocks == []
    assert feature_section(loaded).blocks == []


def test_answers_without_probabilities_have_no_calibration_and_a_dash_in_the_examples(tmp_path: Path, drawn: Drawn) -> None:
    folder = written(tmp_path / "x", {AS_IS: [*emotions(8, mostly, ["en"]), *sentiments(8, 0.2, ["en"])]})
    path = folder / "predictions.jsonl"
    entries = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for entry in entries:
        for name in ("probabilities", "log_probabilities", "interval"):
            entry.pop(name, None)
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")
    page = page_of(folder)
    assert "calibration" not in names_of(page)
    assert not [values["alt"] for values in page.named("img") if "central interval of each mass" in values["alt"]]
    for index, column in ((0, "probability"), (1, "80 % interval")):
        columns, rows = table_of(page, "examples", index)
        assert len(rows) == (5 if index == 0 else 8)
        assert {r[columns.index(column)][0] for r in rows} == {"–"}


def test_a_tag_of_one_language_has_a_row_for_that_language_and_a_dash_elsewhere(tmp_path: Path, drawn: Drawn) -> None:
    tagged = [emotion(f"zh{i}", USED[i % 4], "joy", "zh", tags=("quiet",)) for i in range(4)]
    plain = [emotion(f"en{i}", USED[i % 4], "joy") for i in range(4)]
    other = [emotion(p.id, str(p.truth), "joy", p.language) for p in (*tagged, *plain)]
    page = page_of(written(tmp_path / "x", {AS_IS: [*tagged, *plain], "without text": other}, [EMOTION]))
    assert [[c[0] for c in r[:3]] for r in table_of(page, "subsets")[1]][3:] == [
        ["quiet", "zh", "4"],
        ["quiet", "all languages", "4"],
    ]
    columns, rows = table_of(page, "conditions")
    assert row_of(rows, "without text")[columns.index("quiet, n=4")] == ["–"]


def test_an_evaluation_without_any_row_is_still_a_page(tmp_path: Path, drawn: Drawn) -> None:
    page = page_of(written(tmp_path / "x", {AS_IS: []}), facts="quickstart")
    assert names_of(page)[:2] == ["facts", "warnings"]


# --- examples and inference -------------------------------------------------------------------------------------------


def test_examples_are_right_and_wrong_ones_from_the_surest_on(tmp_path: Path, drawn: Drawn) -> None:
    sure = np.linspace(0.3, 0.9, 12).round(3)
    answers = [emotion(f"u{i:02d}", "joy" if i % 2 else "fear", "joy", sure=float(s)) for i, s in enumerate(sure)]
    _, rows = table_of(page_of(written(tmp_path / "x", {AS_IS: answers}, [EMOTION])), "examples")
    assert [r[-1][0] for r in rows] == ["right"] * 4 + ["wrong"] * 4
    shown = [float(r[-2][0]) for r in rows]
    assert shown[:4] == sorted(shown[:4], reverse=True)
    assert (rows[0][0][0], rows[4][0][0]) == ("u11", "u10")
    for cells in rows:
        assert float(cells[-2][0]) == sure[int(cells[0][0][1:])]
        assert (cells[2][0] == cells[3][0]) is (cells[-1][0] == "right")


def test_answers_of_infer_are_shown_with_their_error_or_how_sure_they_are(made: Made) -> None:
    _, rows = table_of(made.page, "inference")
    assert rows == [
        [["one"], ["emotion"], ["en"], ["joy"], ["p 0.625"]],
        [["two"], ["sentiment"], ["zh"], ["1.20", "written: 1.2"], ["80 %: [0.50, 2.00]"]],
        [["three"], ["–"], ["–"], ["no such clip"], ["–"]],
    ]


@pytest.mark.parametrize("line", ["not json", "[1]", '{"id": "a"}', '{"value": "joy"}'])
def test_a_file_that_infer_did_not_write_is_refused_by_name_and_line(line: str, tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text('{"id": "a", "value": "joy"}\n' + line, encoding="utf-8")
    with pytest.raises(UserError, match=r"answers\.jsonl:2: not"):
        inference_section(path)
    with pytest.raises(UserError, match=r"gone\.jsonl: no such file"):
        inference_section(tmp_path / "gone.jsonl")


# --- folders that are none --------------------------------------------------------------------------------------------


def test_a_missing_or_wrong_evaluation_folder_is_named_and_nothing_is_written(tmp_path: Path, drawn: Drawn) -> None:
    good = written(tmp_path / "good", {AS_IS: emotions(8, mostly)}, [EMOTION])
    (tmp_path / "empty").mkdir()
    output = tmp_path / "report.html"
    for name in ("nowhere", "empty"):
        bad = str(tmp_path / name)
        for options in ({"evaluations": [bad]}, {"evaluations": [str(good), bad]}, {"text_only": bad}):
            with pytest.raises(UserError, match=rf"{name}: no evaluation\.json"):
                report.run(ReportConfig(**{"evaluations": [str(good)], "output": str(output), **options}))  # type: ignore[arg-type]
    with pytest.raises(UserError, match="--evaluations"):
        build_page(ReportConfig())
    assert not output.exists()


def test_a_folder_as_output_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a folder; name the HTML file"):
        report.run(ReportConfig(evaluations=["nowhere"], output=str(tmp_path)))


def test_systems_that_were_computed_in_two_precisions_are_said_to_be_that(tmp_path: Path) -> None:
    def page(*precisions: str) -> str:
        answers = {AS_IS: emotions(8, mostly)}
        places = [
            str(
                written(
                    tmp_path / "-".join(precisions) / f"{i}-{name}",
                    answers,
                    checkpoint={"backbone": "llama", "precision": name},
                )
            )
            for i, name in enumerate(precisions)
        ]
        return Page(build_page(ReportConfig(evaluations=places))[0]).text

    told = "the systems were computed in float32 and bfloat16, so part of a difference may be rounding"
    mixed = page("float32", "bfloat16")
    assert told in mixed
    assert "bfloat16" in mixed.replace(told, "")
    assert "computed in" not in page("float32", "float32")


def test_systems_on_other_utterances_are_said_not_to_compare(tmp_path: Path) -> None:
    answers = {AS_IS: emotions(20, mostly)}
    places = [str(written(tmp_path / name, answers, (EMOTION,), split=split)) for name, split in USED_SPLITS]
    page, _ = build_page(ReportConfig(evaluations=places))
    assert (
        "were not evaluated on the same utterances, so their scores do not compare: 1. a on hand-built (0), split test"
        in page
    )
    page, _ = build_page(ReportConfig(evaluations=places[:1] * 2))
    assert "not evaluated on the same utterances" not in page


USED_SPLITS = (("a", "test"), ("b", "valid"))


def test_a_confusion_matrix_of_very_many_classes_shows_the_frequent_ones_and_counts_the_others() -> None:
    counts = np.random.default_rng(0).poisson(np.linspace(0.01, 2, 200)[:, None] * np.linspace(2, 0.01, 200))
    merged, names = merge_rare_classes(counts, [f"mood {i}" for i in range(200)])
    assert merged.shape == (40, 40)
    assert merged.sum() == counts.sum()
    assert names[-1] == "161 others"
    kept = [int(name.removeprefix("mood ")) for name in names[:-1]]
    assert kept == sorted(kept)
    np.testing.assert_array_equal(merged[:-1, :-1], counts[np.ix_(kept, kept)])
    rare = [i for i in range(200) if i not in kept]
    assert merged[-1, -1] == counts[np.ix_(rare, rare)].sum()
    often = counts.sum(axis=0) + counts.sum(axis=1)
    assert often[kept].min() >= often[rare].max()
    small = counts[:6, :6]
    assert merge_rare_classes(small, list("abcdef"))[0] is small
