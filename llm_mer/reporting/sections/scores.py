"""Scores by condition, subset, class and amount of corruption."""

from __future__ import annotations

from llm_mer.evaluation.conditions import AS_IS, DIALOGUE, GENERATION
from llm_mer.evaluation.curves import curve
from llm_mer.evaluation.metrics import class_scores, headline_metric
from llm_mer.evaluation.subsets import DISTANCE, EVERYTHING, FLAG, LENGTH, TAG, TURN
from llm_mer.prompting.tasks import Task
from llm_mer.reporting import plots
from llm_mer.reporting.blocks import Cell, Picture, Section, Table, Verdict
from llm_mer.reporting.facts import Fact, FactLine, LoadedEvaluation
from llm_mer.reporting.wording import (
    METRIC_LABELS,
    condition_names_of,
    describe_resampling,
    format_interval,
    format_number,
    language_columns,
    language_label,
    metric_label,
    score_cell,
    subset_names_of,
    verdict_label,
    verdict_tone,
)


def fact_block(fact: Fact) -> Verdict:
    """A fact with its numbers as a table."""

    def cells(line: FactLine) -> list[Cell]:
        interval = () if line.interval is None else (format_interval(line.interval),)
        p = "" if line.p is None else str(line.p)
        decision = (
            Cell("shown only") if line.holds is None else Cell(verdict_label(line.holds), (), verdict_tone(line.holds))
        )
        against = Cell(line.against or p or "", (p,) if p and line.against else ())
        return [Cell(line.what.strip()), Cell(format_number(line.value), interval), Cell(str(line.n)), against, decision]

    columns = ["what", "value, 95 % interval", "n", "beside", "by the rule"]
    table = Table(columns, [cells(line) for line in fact.lines], "")
    return Verdict(fact, table, verdict_tone(fact.holds))


def score_section(main: LoadedEvaluation) -> Section:
    """Every metric of every task by language, without corruption."""
    section = Section("scores", "Scores by task and language")
    for task in main.tasks:
        languages = [language for language in language_columns(main) if main.evaluation.find(AS_IS, task.name, language)]
        rows = {language: main.evaluation.find(AS_IS, task.name, language) for language in languages}
        present = [row for row in rows.values() if row is not None]
        if not present:
            continue
        occurring = dict.fromkeys(name for row in present for name in row.metrics)
        names = [name for name in occurring if name != "n_scored" and not name.startswith("f1/")]
        lines = [[Cell("utterances n"), *(Cell(str(row.n)) for row in present)]]
        for name in names:
            line = [Cell(metric_label(name))]
            for row in present:
                below = (f"baseline {format_number(row.baseline[name])}",) if name in row.baseline else ()
                line.append(score_cell(row, name, *below))
            lines.append(line)
        lines.append([Cell("unparseable rate ↓"), *(Cell(format_number(row.unparseable_rate)) for row in present)])
        if any(row.outside_share is not None for row in present):
            shares = ("–" if row.outside_share is None else f"{row.outside_share:.3g}" for row in present)
            lines.append([Cell("probability outside the answers ↓"), *(Cell(share) for share in shares)])
        trivial = "most frequent class" if task.kind == "classification" else "mean score"
        caption = (
            f"Task {task.name} ({task.kind}), split {main.evaluation.split}, {AS_IS}. In brackets the 95 % interval from "
            f"{main.evaluation.resamples} bootstrap resamples{describe_resampling(present)}; baseline: always the "
            f"{trivial} of the same truths."
        )
        section.blocks.append(Table(["metric", *(language_label(s) for s in languages)], lines, caption))
    return section


SUBSET_DESCRIPTIONS: dict[str, str] = {
    TAG: "the subsets named by the data's tags",
    FLAG: "recordings with a flag (silence, low level, clipping, black, blank or frozen pictures), and the others",
    LENGTH: "by length of the transcript, in words of English and characters of Chinese",
    TURN: "by position in the conversation",
    DISTANCE: "by distance of the features from the training data, of the modality that is farthest",
}


def subset_section(main: LoadedEvaluation) -> Section:
    """Subsets by tag, length, turn and distance, by language."""
    section = Section("subsets", "Subsets")
    for task in main.tasks:
        section.blocks += [subset_table(main, task, by) for by in SUBSET_DESCRIPTIONS if subset_names_of(main, task, by)]
    return section


def subset_table(main: LoadedEvaluation, task: Task, by: str) -> Table:
    """The subsets of one grouping, after the whole."""
    metrics = ["accuracy", "weighted_f1"] if task.kind == "classification" else ["mae", "corr"]
    metrics += ["ccc"] if task.metrics == "plain" else []
    columns = ["subset", "language", "n"]
    for metric in metrics:
        columns += [metric_label(metric), f"baseline {METRIC_LABELS[metric][0]}"]
    columns += ["unparseable"]
    lines = []
    for subset in [EVERYTHING, *subset_names_of(main, task, by)]:
        for language in language_columns(main):
            row = main.evaluation.find(AS_IS, task.name, language, subset)
            if row is None:
                continue
            line = [Cell(subset), Cell(language_label(language)), Cell(str(row.n))]
            for metric in metrics:
                line += [score_cell(row, metric), Cell(format_number(row.baseline.get(metric, float("nan"))))]
            line += [Cell(format_number(row.unparseable_rate))]
            lines.append(line)
    caption = f"Task {task.name}, {AS_IS}: {SUBSET_DESCRIPTIONS[by]}, each with its own n and baseline."
    return Table(columns, lines, caption, heads=2)


def class_section(main: LoadedEvaluation) -> Section:
    """Precision, recall and F1 of every class, by language."""
    section = Section("classes", "Classes")
    for task in main.tasks:
        if task.kind != "classification":
            continue
        lines = []
        for language in language_columns(main):
            known = main.known(AS_IS, task.name, language)
            if not known:
                continue
            scores = class_scores(task, [p.truth for p in known], [p.value for p in known])
            lines += [
                [
                    Cell(entry.label),
                    Cell(language_label(language)),
                    Cell(str(entry.n)),
                    Cell(str(entry.answered)),
                    Cell(format_number(entry.precision)),
                    Cell(format_number(entry.recall)),
                    Cell(format_number(entry.f1)),
                ]
                for entry in scores
            ]
        caption = (
            f"Task {task.name}, {AS_IS}: n utterances of the class, how often it was answered, the share of these answers "
            "that are right (precision), the share of its utterances that are found (recall), and their harmonic mean. A "
            "class that is never answered has no precision, one that does not occur has no recall."
        )
        columns = ["class", "language", "n", "answered", "precision ↑", "recall ↑", "F1 ↑"]
        section.blocks.append(Table(columns, lines, caption, heads=2))
    return section


CORRUPTION_DESCRIPTIONS: dict[str, tuple[str, str]] = {
    "missing": ("rate of missing steps and words", "each step of each modality and each word missing at a rate"),
    "drop_frames": ("rate of dropped frames", "vision steps dropped at a rate"),
    "word_errors": ("word error rate (characters in Chinese)", "transcripts with speech recognition errors"),
    "audio_snr": ("signal-to-noise ratio, dB", "white noise added, audio features extracted again"),
}


def noise_section(main: LoadedEvaluation) -> Section:
    """A metric against the amount of each kind of corruption, and the areas under the curves."""
    section = Section("noise", "Robustness to corruption")
    for kind in dict.fromkeys(c.kind for c in main.evaluation.conditions if c.kind in CORRUPTION_DESCRIPTIONS):
        for task in main.tasks:
            picture = noise_picture(main, kind, task)
            section.blocks += [] if picture is None else [picture]
    lines = [
        [
            Cell(area.kind),
            Cell(area.task),
            Cell(language_label(area.language)),
            Cell(metric_label(area.metric)),
            Cell(f"{area.amounts[0]:g} to {area.amounts[-1]:g}"),
            Cell(format_number(area.area)),
            Cell(format_number(area.mean)),
        ]
        for area in main.evaluation.areas
        if len(main.languages) > 1 or area.language != EVERYTHING
    ]
    if lines:
        caption = (
            "Area under each curve by the trapezoid rule (MMSA's AUILC for missing rates), rates from 0, without "
            "corruption; mean is the area divided by the span of the amounts."
        )
        columns = ["corruption", "task", "language", "metric", "amounts", "area", "mean"]
        section.blocks.append(Table(columns, lines, caption, heads=4))
    return section


def noise_picture(main: LoadedEvaluation, kind: str, task: Task) -> Picture | None:
    """The curve of a task's headline metric, one line per language; None if it was not scored."""
    metric = headline_metric(task)
    across, words = CORRUPTION_DESCRIPTIONS[kind]
    found = {
        language: points
        for language in main.languages
        if (points := curve(main.evaluation.rows, main.evaluation.conditions, kind, task.name, language, metric, AS_IS))
    }
    if not found:
        return None
    amounts = sorted({p.amount for points in found.values() for p in points if p.amount is not None})
    # Decibels decrease as noise grows, and uncorrupted utterances have no value: they are placed one step to the left.
    falling = kind == "audio_snr"
    step = (amounts[-1] - amounts[0]) / max(len(amounts) - 1, 1) or 10.0
    x_position = {amount: -amount if falling else amount for amount in amounts}
    as_is = -(amounts[-1] + step) if falling else 0.0
    ticks = {as_is: AS_IS} if falling else {}
    ticks |= {x_position[amount]: f"{amount:g}" for amount in amounts}
    bands = {}
    for language, points in found.items():
        x = [as_is if p.amount is None else x_position[p.amount] for p in points]
        order = sorted(range(len(x)), key=x.__getitem__)
        bands[language] = plots.Band(
            [x[i] for i in order],
            [points[i].value for i in order],
            [points[i].interval[0] for i in order],
            [points[i].interval[1] for i in order],
            points[0].baseline,
        )
    counts = {language: row.n for language in found if (row := main.evaluation.find(AS_IS, task.name, language)) is not None}
    utterance_counts = ", ".join(f"{language} n={n}" for language, n in counts.items())
    caption = (
        f"{task.name}, {utterance_counts}: {metric_label(metric)} with its 95 % interval, {words}. Dotted: always the most "
        "frequent class or the mean score of the same truths."
    )
    return Picture(plots.draw_noise_curves(bands, ticks, across, METRIC_LABELS[metric][0]), caption)


def condition_section(main: LoadedEvaluation) -> Section:
    """Conditions side by side, then every row of the evaluation in a folded table."""
    section = Section("conditions", "Conditions side by side")
    for task in main.tasks:
        names = condition_names_of(main, task)
        metric = headline_metric(task)
        places = [(language, EVERYTHING) for language in language_columns(main)]
        places += [(EVERYTHING, subset) for subset in subset_names_of(main, task, TAG)]
        if len(main.languages) == 1:  # rows of one language and of all are the same
            places = [(main.languages[0], subset) for subset in [EVERYTHING, *subset_names_of(main, task, TAG)]]
        columns = ["condition"]
        baseline_cells = [Cell("baseline")]
        for language, subset in places:
            row = main.evaluation.find(AS_IS, task.name, language, subset)
            words = language_label(language) if subset == EVERYTHING else subset
            columns.append(words if row is None else f"{words}, n={row.n}")
            baseline_cells.append(Cell("–" if row is None else format_number(row.baseline.get(metric, float("nan")))))
        lines = [baseline_cells]
        for name in names:
            line = [Cell(name)]
            for language, subset in places:
                row = main.evaluation.find(name, task.name, language, subset)
                as_is_row = main.evaluation.find(AS_IS, task.name, language, subset)
                below = () if row is None or as_is_row is None or row.n == as_is_row.n else (f"n={row.n}",)
                line.append(score_cell(row, metric, *below))
            overall_row = main.evaluation.find(name, task.name, places[0][0] if len(main.languages) == 1 else EVERYTHING)
            line.append(Cell("–" if overall_row is None else format_number(overall_row.unparseable_rate)))
            lines.append(line)
        lines[0].append(Cell(""))
        caption = (
            f"Task {task.name}: {metric_label(metric)} with its 95 % interval. “Shuffled” takes a modality from other "
            f"utterances, “without” leaves it out, “{GENERATION}” parses the model's free generation (an answer that "
            f"cannot be parsed counts as wrong for classes and is left out for scores), “{DIALOGUE}” decodes conversations."
        )
        section.blocks.append(Table([*columns, "unparseable"], lines, caption))
    section.blocks.append(every_row(main))
    return section


def every_row(main: LoadedEvaluation) -> Table:
    """All rows of the evaluation."""
    lines = []
    for row in main.evaluation.rows:
        if row.language == EVERYTHING and len(main.languages) == 1:
            continue
        shown = [
            f"{metric_label(m)} {format_number(row.metrics[m])} {format_interval(row.intervals[m])}" for m in row.intervals
        ]
        beside = [f"{metric_label(m)} {format_number(row.baseline[m])}" for m in row.intervals if m in row.baseline]
        lines.append(
            [
                Cell(row.condition),
                Cell(row.task),
                Cell(row.language),
                Cell(row.subset),
                Cell(str(row.n)),
                Cell(shown[0] if shown else "–", tuple(shown[1:])),
                Cell(beside[0] if beside else "–", tuple(beside[1:])),
                Cell(format_number(row.unparseable_rate)),
            ]
        )
    columns = ["condition", "task", "language", "subset", "n", "scores, 95 % interval", "baseline", "unparseable"]
    return Table(columns, lines, "Every row of the evaluation.", heads=4, folded=f"Every row ({len(lines)})")
