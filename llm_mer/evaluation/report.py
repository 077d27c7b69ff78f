"""``llm-mer report``: one self-contained HTML page from evaluations. Every number on it is read from their files."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from llm_mer.errors import UserError
from llm_mer.evaluation import plots
from llm_mer.evaluation.curves import curve
from llm_mer.evaluation.evaluate import AS_IS, DIALOGUE, EVALUATION, EVERYTHING, GENERATION, Row
from llm_mer.evaluation.facts import Fact, Line, Loaded, facts_text, load, main_class_task, quickstart_facts
from llm_mer.evaluation.metrics import class_indices, class_scores, interval_coverage
from llm_mer.evaluation.seeds import Spread, over_seeds
from llm_mer.evaluation.subsets import LENGTH, TAG, TURN
from llm_mer.prediction import Prediction
from llm_mer.run_manifest import RunManifest
from llm_mer.tasks import Task

SYNTHETIC_NOTE = (
    "The data are the synthetic corpus: spoken by a synthesiser and drawn by a program. It is a test bench for this "
    "program; scores on it are not scores on people."
)


@dataclass
class ReportConfig:
    """Options of ``llm-mer report``."""

    evaluations: list[str] = field(
        default_factory=list,
        metadata={"help": "checkpoint or evaluation folders; the first is the one described in full", "required": True},
    )
    text_only: str | None = field(
        default=None, metadata={"help": "evaluation of a checkpoint that reads text alone, on the same split"}
    )
    inference: str | None = field(default=None, metadata={"help": "JSONL written by infer.py, shown as examples"})
    facts: str = field(
        default="none",
        metadata={"help": "also judge the three facts of the quickstart", "choices": ["none", "quickstart"]},
    )
    note: str | None = field(
        default=None, metadata={"help": "a remark on the data for the top (quickstart: that its corpus is synthetic)"}
    )
    title: str = field(default="", metadata={"help": "heading of the page (default: adapter and data)"})
    output: str = field(default="report.html", metadata={"help": "HTML file to write"})


# --- blocks of the page -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    """A table cell: a value, smaller lines under it, and a tone (``good``, ``bad``, ``unsure``)."""

    text: str
    below: tuple[str, ...] = ()
    tone: str = ""


@dataclass
class Table:
    """Rows under column names; the first ``heads`` columns are words, the others numbers, set flush right."""

    columns: list[str]
    rows: list[list[Cell]]
    caption: str
    heads: int = 1
    folded: str = ""
    kind: str = "table"


@dataclass
class Picture:
    """A plot with its caption, which is also what a screen reader says."""

    image: plots.Image
    caption: str
    kind: str = "picture"


@dataclass
class Remark:
    """A paragraph; ``tone`` as in :class:`Cell`."""

    text: str
    tone: str = ""
    kind: str = "remark"


@dataclass
class Verdict:
    """A fact: claim, verdict, rule and its numbers."""

    fact: Fact
    table: Table
    tone: str
    kind: str = "verdict"


Block = Table | Picture | Remark | Verdict


@dataclass
class Section:
    """A heading and what stands under it; pictures that follow one another stand side by side where there is room."""

    name: str
    title: str
    blocks: list[Block] = field(default_factory=list)

    @property
    def runs(self) -> list[list[Block]]:
        """Blocks in order, neighbouring pictures together."""
        found: list[list[Block]] = []
        for block in self.blocks:
            if found and isinstance(block, Picture) and isinstance(found[-1][-1], Picture):
                found[-1].append(block)
            else:
                found.append([block])
        return found


# --- words and numbers ------------------------------------------------------------------------------------------------

METRIC_WORDS: dict[str, tuple[str, str]] = {
    "accuracy": ("accuracy", "↑"),
    "weighted_f1": ("weighted F1", "↑"),
    "macro_f1": ("macro F1", "↑"),
    "wa": ("WA (accuracy)", "↑"),
    "ua": ("UA (mean recall)", "↑"),
    "ova_accuracy": ("one-vs-all accuracy", "↑"),
    "nll": ("negative log-likelihood", "↓"),
    "brier": ("Brier score", "↓"),
    "ece": ("ECE, 15 bins", "↓"),
    "mae": ("MAE", "↓"),
    "corr": ("Pearson r", "↑"),
    "acc7": ("Acc-7", "↑"),
    "acc5": ("Acc-5", "↑"),
    "acc3": ("Acc-3", "↑"),
    "acc2": ("Acc-2", "↑"),
    "acc2_weak": ("Acc-2, weak", "↑"),
    "f1": ("F1", "↑"),
    "has0_acc2": ("Acc-2, negative / not", "↑"),
    "has0_f1": ("F1, negative / not", "↑"),
    "non0_acc2": ("Acc-2, negative / positive", "↑"),
    "non0_f1": ("F1, negative / positive", "↑"),
    "r2": ("R²", "↑"),
    "coverage80": ("truths in the 80 % interval", "→ 0.8"),
}
DIAGNOSTIC_WORDS: dict[str, str] = {
    "expert_weights": "Expert weights α",
    "feature_gate": "Feature-driven gate w",
    "expert_cosine": "Cosine between experts",
    "modality_gates": "Modality gates",
    "multimodal_gate": "Multimodal gate",
    "unimodal_gate": "Gates of the attention paths",
    "fusion_weights": "Fusion weights",
    "label_gate": "Label gates",
    "label_focus": "Label focus",
    "label_similarity": "Similarity to label embeddings",
    "stream_gates": "Stream gates",
    "gate_mean": "Gate means",
    "gate_variance": "Gate variances",
    "gate_used": "Gates in use",
    "invariant_divergence": "Divergence of the invariant representations",
}
EXPERTS = ("E1 local", "E2 semantic", "E3 global")
MOST_PARTS, MOST_BARS, MOST_TURNS, MOST_POINTS = 6, 60, 30, 1500
EXAMPLES = 4


def number(value: float) -> str:
    """Three decimals; a dash for what does not exist."""
    return "–" if value != value else f"{value:.3f}"


def span(interval: Sequence[float]) -> str:
    """``[low, high]``."""
    return f"[{number(interval[0])}, {number(interval[1])}]"


def metric_words(name: str) -> str:
    """A metric's name and which way is better."""
    word, way = METRIC_WORDS.get(name, (name, ""))
    return f"{word} {way}".strip()


def headline(task: Task) -> str:
    """The metric that stands for a task where there is room for one."""
    return "accuracy" if task.kind == "classification" else "mae"


def language_words(language: str) -> str:
    """The row over all languages says so."""
    return "all languages" if language == EVERYTHING else language


def score_cell(row: Row | None, metric: str, *below: str) -> Cell:
    """A metric with its interval under it; a dash when the row or the metric does not exist."""
    if row is None or metric not in row.metrics:
        return Cell("–")
    interval = (span(row.intervals[metric]),) if metric in row.intervals else ()
    return Cell(number(row.metrics[metric]), (*interval, *below))


def columns_of(main: Loaded) -> list[str]:
    """Languages, and all of them together when there are several."""
    return [*main.languages, *([EVERYTHING] if len(main.languages) > 1 else [])]


def subsets(main: Loaded, task: Task, by: str) -> list[str]:
    """Subsets of a grouping that occur, without the whole."""
    rows = main.evaluation.rows
    return list(dict.fromkeys(r.subset for r in rows if (r.task, r.by) == (task.name, by) and r.subset != EVERYTHING))


def conditions(main: Loaded, task: Task) -> list[str]:
    """Conditions of a task, as they are in the evaluation."""
    return list(dict.fromkeys(row.condition for row in main.evaluation.rows if row.task == task.name))


def tone_of(holds: bool | None) -> str:
    """The tone of a verdict."""
    return "unsure" if holds is None else "good" if holds else "bad"


# --- sections: facts and scores ---------------------------------------------------------------------------------------


def fact_block(fact: Fact) -> Verdict:
    """A fact with its numbers as a table."""

    def cells(line: Line) -> list[Cell]:
        interval = () if line.interval is None else (span(line.interval),)
        p = "" if line.p is None else f"p = {line.p:.3f}"
        decision = Cell("shown only") if line.holds is None else Cell(verdict_words(line.holds), (), tone_of(line.holds))
        against = Cell(line.against or p or "", (p,) if p and line.against else ())
        return [Cell(line.what.strip()), Cell(number(line.value), interval), Cell(str(line.n)), against, decision]

    columns = ["what", "value, 95 % interval", "n", "beside", "by the rule"]
    table = Table(columns, [cells(line) for line in fact.lines], "")
    return Verdict(fact, table, tone_of(fact.holds))


def verdict_words(holds: bool) -> str:
    """Short form for a table."""
    return "yes" if holds else "no"


def score_section(main: Loaded) -> Section:
    """Every metric of every task by language, answers as they are."""
    section = Section("scores", "Scores by task and language")
    for task in main.tasks:
        spoken = [language for language in columns_of(main) if main.evaluation.find(AS_IS, task.name, language)]
        rows = {language: main.evaluation.find(AS_IS, task.name, language) for language in spoken}
        present = [row for row in rows.values() if row is not None]
        if not present:
            continue
        occurring = dict.fromkeys(name for row in present for name in row.metrics)
        names = [name for name in occurring if name != "n_scored" and not name.startswith("f1/")]
        lines = [[Cell("utterances n"), *(Cell(str(row.n)) for row in present)]]
        for name in names:
            line = [Cell(metric_words(name))]
            for row in present:
                below = (f"baseline {number(row.baseline[name])}",) if name in row.baseline else ()
                line.append(score_cell(row, name, *below))
            lines.append(line)
        lines.append([Cell("unparseable rate ↓"), *(Cell(number(row.unparseable_rate)) for row in present)])
        trivial = "commonest class" if task.kind == "classification" else "mean score"
        caption = (
            f"Task {task.name} ({task.kind}), split {main.evaluation.split}, {AS_IS}. In brackets the 95 % interval from "
            f"{main.evaluation.resamples} bootstrap resamples; baseline: always the {trivial} of these same truths."
        )
        section.blocks.append(Table(["metric", *(language_words(s) for s in spoken)], lines, caption))
    return section


SUBSET_WORDS: dict[str, str] = {
    TAG: "the subsets that the data's tags name",
    LENGTH: "by length of the transcript, in words of English and characters of Chinese",
    TURN: "by place in the conversation",
}


def subset_section(main: Loaded) -> Section:
    """Subsets by tag, length and turn, by language."""
    section = Section("subsets", "Subsets")
    for task in main.tasks:
        section.blocks += [subset_table(main, task, by) for by in SUBSET_WORDS if subsets(main, task, by)]
    return section


def subset_table(main: Loaded, task: Task, by: str) -> Table:
    """The subsets of one grouping, after the whole."""
    metrics = ["accuracy", "weighted_f1"] if task.kind == "classification" else ["mae", "corr"]
    columns = ["subset", "language", "n"]
    for metric in metrics:
        columns += [metric_words(metric), f"baseline {METRIC_WORDS[metric][0]}"]
    columns += ["unparseable"]
    lines = []
    for subset in [EVERYTHING, *subsets(main, task, by)]:
        for language in columns_of(main):
            row = main.evaluation.find(AS_IS, task.name, language, subset)
            if row is None:
                continue
            line = [Cell(subset), Cell(language_words(language)), Cell(str(row.n))]
            for metric in metrics:
                line += [score_cell(row, metric), Cell(number(row.baseline.get(metric, float("nan"))))]
            line += [Cell(number(row.unparseable_rate))]
            lines.append(line)
    caption = f"Task {task.name}, {AS_IS}: {SUBSET_WORDS[by]}, each with its own n and baseline."
    return Table(columns, lines, caption, heads=2)


def class_section(main: Loaded) -> Section:
    """Precision, recall and F1 of every class, by language."""
    section = Section("classes", "Classes")
    for task in main.tasks:
        if task.kind != "classification":
            continue
        lines = []
        for language in columns_of(main):
            known = main.known(AS_IS, task.name, language)
            if not known:
                continue
            scores = class_scores(task, [p.truth for p in known], [p.value for p in known])
            lines += [
                [
                    Cell(entry.label),
                    Cell(language_words(language)),
                    Cell(str(entry.n)),
                    Cell(str(entry.answered)),
                    Cell(number(entry.precision)),
                    Cell(number(entry.recall)),
                    Cell(number(entry.f1)),
                ]
                for entry in scores
            ]
        caption = (
            f"Task {task.name}, {AS_IS}: n utterances of the class, how often it was answered, the share of these answers "
            "that are right (precision), the share of its utterances that are found (recall), and their harmonic mean. A "
            "class that is never answered has no precision, one that does not occur no recall."
        )
        columns = ["class", "language", "n", "answered", "precision ↑", "recall ↑", "F1 ↑"]
        section.blocks.append(Table(columns, lines, caption, heads=2))
    return section


NOISE_WORDS: dict[str, tuple[str, str]] = {
    "missing": ("rate of missing steps and words", "each step of each modality and each word missing with a rate"),
    "drop_frames": ("rate of lost frames", "vision steps lost with a rate"),
    "word_errors": ("word error rate (characters in Chinese)", "transcripts with errors like a speech recogniser's"),
    "audio_snr": ("signal-to-noise ratio, dB", "white noise under the voice, audio features extracted again"),
}


def noise_section(main: Loaded) -> Section:
    """A metric over the amount of each kind of damage, and the areas under the curves."""
    section = Section("noise", "Under damage")
    for kind in dict.fromkeys(c.kind for c in main.evaluation.conditions if c.kind in NOISE_WORDS):
        for task in main.tasks:
            picture = noise_picture(main, kind, task)
            section.blocks += [] if picture is None else [picture]
    lines = [
        [
            Cell(area.kind),
            Cell(area.task),
            Cell(language_words(area.language)),
            Cell(metric_words(area.metric)),
            Cell(f"{area.amounts[0]:g} to {area.amounts[-1]:g}"),
            Cell(number(area.area)),
            Cell(number(area.mean)),
        ]
        for area in main.evaluation.areas
        if len(main.languages) > 1 or area.language != EVERYTHING
    ]
    if lines:
        caption = (
            "Area under each curve by the trapezoid rule (MMSA's AUILC for missing rates), rates from 0, where utterances "
            "are as they are; mean is the area divided by the span of the amounts."
        )
        columns = ["damage", "task", "language", "metric", "amounts", "area", "mean"]
        section.blocks.append(Table(columns, lines, caption, heads=4))
    return section


def noise_picture(main: Loaded, kind: str, task: Task) -> Picture | None:
    """The curve of a task's headline metric, a line a language; None where it was not scored."""
    metric = headline(task)
    across, words = NOISE_WORDS[kind]
    found = {
        language: points
        for language in main.languages
        if (points := curve(main.evaluation.rows, main.evaluation.conditions, kind, task.name, language, metric, AS_IS))
    }
    if not found:
        return None
    amounts = sorted({p.amount for points in found.values() for p in points if p.amount is not None})
    # Decibels fall as the noise grows, and utterances as they are have none: they stand at the left, one step away.
    falling = kind == "audio_snr"
    step = (amounts[-1] - amounts[0]) / max(len(amounts) - 1, 1) or 10.0
    place = {amount: -amount if falling else amount for amount in amounts}
    as_is = -(amounts[-1] + step) if falling else 0.0
    ticks = {as_is: AS_IS} if falling else {}
    ticks |= {place[amount]: f"{amount:g}" for amount in amounts}
    bands = {}
    for language, points in found.items():
        x = [as_is if p.amount is None else place[p.amount] for p in points]
        order = sorted(range(len(x)), key=x.__getitem__)
        bands[language] = plots.Band(
            [x[i] for i in order],
            [points[i].value for i in order],
            [points[i].interval[0] for i in order],
            [points[i].interval[1] for i in order],
            points[0].baseline,
        )
    counts = {language: row.n for language in found if (row := main.evaluation.find(AS_IS, task.name, language)) is not None}
    said = ", ".join(f"{language} n={n}" for language, n in counts.items())
    caption = (
        f"{task.name}, {said}: {metric_words(metric)} with its 95 % interval, {words}. Dotted: always the commonest "
        "class or the mean score of the same truths."
    )
    return Picture(plots.noise_curves(bands, ticks, across, METRIC_WORDS[metric][0]), caption)


def condition_section(main: Loaded) -> Section:
    """Conditions side by side, then every row of the evaluation folded away."""
    section = Section("conditions", "Conditions side by side")
    for task in main.tasks:
        names = conditions(main, task)
        metric = headline(task)
        places = [(language, EVERYTHING) for language in columns_of(main)]
        places += [(EVERYTHING, subset) for subset in subsets(main, task, TAG)]
        if len(main.languages) == 1:  # rows of one language and of all are the same
            places = [(main.languages[0], subset) for subset in [EVERYTHING, *subsets(main, task, TAG)]]
        columns = ["condition"]
        base = [Cell("baseline")]
        for language, subset in places:
            row = main.evaluation.find(AS_IS, task.name, language, subset)
            words = language_words(language) if subset == EVERYTHING else subset
            columns.append(words if row is None else f"{words}, n={row.n}")
            base.append(Cell("–" if row is None else number(row.baseline.get(metric, float("nan")))))
        lines = [base]
        for name in names:
            line = [Cell(name)]
            for language, subset in places:
                row = main.evaluation.find(name, task.name, language, subset)
                usual = main.evaluation.find(AS_IS, task.name, language, subset)
                below = () if row is None or usual is None or row.n == usual.n else (f"n={row.n}",)
                line.append(score_cell(row, metric, *below))
            whole = main.evaluation.find(name, task.name, places[0][0] if len(main.languages) == 1 else EVERYTHING)
            line.append(Cell("–" if whole is None else number(whole.unparseable_rate)))
            lines.append(line)
        lines[0].append(Cell(""))
        caption = (
            f"Task {task.name}: {metric_words(metric)} with its 95 % interval. “Shuffled” takes a modality from other "
            f"utterances, “without” leaves it out, “{GENERATION}” parses what the model writes freely (an answer that "
            f"cannot be parsed is wrong for classes and left out for scores), “{DIALOGUE}” decodes whole conversations."
        )
        section.blocks.append(Table([*columns, "unparseable"], lines, caption))
    section.blocks.append(every_row(main))
    return section


def every_row(main: Loaded) -> Table:
    """The evaluation's rows in full."""
    lines = []
    for row in main.evaluation.rows:
        if row.language == EVERYTHING and len(main.languages) == 1:
            continue
        shown = [f"{metric_words(m)} {number(row.metrics[m])} {span(row.intervals[m])}" for m in row.intervals]
        beside = [f"{metric_words(m)} {number(row.baseline[m])}" for m in row.intervals if m in row.baseline]
        lines.append(
            [
                Cell(row.condition),
                Cell(row.task),
                Cell(row.language),
                Cell(row.subset),
                Cell(str(row.n)),
                Cell(shown[0] if shown else "–", tuple(shown[1:])),
                Cell(beside[0] if beside else "–", tuple(beside[1:])),
                Cell(number(row.unparseable_rate)),
            ]
        )
    columns = ["condition", "task", "language", "subset", "n", "scores, 95 % interval", "baseline", "unparseable"]
    return Table(columns, lines, "Every row of the evaluation.", heads=4, folded=f"Every row ({len(lines)})")


def system_section(systems: Sequence[tuple[str, Loaded]]) -> Section:
    """Several evaluations beside one another."""
    section = Section("systems", "Systems side by side")
    tasks = {task.name: task for _, loaded in systems for task in loaded.tasks}
    spoken = sorted({language for _, loaded in systems for language in loaded.languages})
    spoken += [EVERYTHING] if len(spoken) > 1 else []
    for task in tasks.values():
        metric = headline(task)
        lines = []
        for name, loaded in systems:
            checkpoint = loaded.evaluation.checkpoint
            reads = " + ".join(checkpoint.get("modalities") or [])
            trained = (checkpoint.get("parameters") or {}).get("trainable")
            line = [
                Cell(name, (f"{checkpoint.get('adapter', '?')}: {reads}",)),
                Cell("–" if trained is None else f"{trained:,}"),
            ]
            for language in spoken:
                row = loaded.evaluation.find(AS_IS, task.name, language)
                beside: tuple[str, ...] = ()
                if row is not None:
                    baseline = f"n={row.n}, baseline {number(row.baseline.get(metric, float('nan')))}"
                    beside = (baseline, f"unparseable {number(row.unparseable_rate)}")
                line.append(score_cell(row, metric, *beside))
            lines.append(line)
        caption = (
            f"Task {task.name}, {AS_IS}: {metric_words(metric)} with its 95 % interval, each system on its own evaluation."
        )
        section.blocks.append(Table(["system", "trainable", *(language_words(s) for s in spoken)], lines, caption))
    return section


# --- sections: runs and seeds -----------------------------------------------------------------------------------------


def manifest_of(loaded: Loaded) -> RunManifest | None:
    """The manifest of the training that the evaluation carries with it; None for one made before there were any."""
    entry = loaded.evaluation.checkpoint.get("run")
    return None if entry is None else RunManifest.from_dict(entry, f"{loaded.folder}: the run in {EVALUATION}")


def run_section(systems: Sequence[tuple[str, Loaded]]) -> Section:
    """What each system was trained with: code, versions, machine, data; every option folded away."""
    section = Section("runs", "How it was trained")
    manifests = {name: found for name, loaded in systems if (found := manifest_of(loaded)) is not None}
    if not manifests:
        return section
    facts = {name: run_facts(manifest) for name, manifest in manifests.items()}
    lines = [[Cell(fact), *(Cell(own[fact]) for own in facts.values())] for fact in next(iter(facts.values()))]
    caption = "From the manifest that the training wrote beside its checkpoint; `llm-mer reproduce` runs it again."
    section.blocks.append(Table(["", *manifests], lines, caption, heads=1 + len(manifests)))
    options: dict[str, None] = {}
    flat = {}
    for name, manifest in manifests.items():
        flat[name] = {f"{group}: {k}": v for group, values in manifest.options.items() for k, v in values.items()}
        options.update(dict.fromkeys(flat[name]))
    lines = [[Cell(option), *(Cell(option_text(own.get(option))) for own in flat.values())] for option in options]
    caption = "Every option as given by file, command line and defaults; – where nothing was given."
    section.blocks.append(
        Table(["option", *manifests], lines, caption, heads=1 + len(manifests), folded=f"Every option ({len(lines)})")
    )
    return section


def option_text(value: Any) -> str:
    """An option's value as it would be written."""
    return "–" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def run_facts(manifest: RunManifest) -> dict[str, str]:
    """A manifest in few lines."""
    machine, git = manifest.hardware, manifest.git
    changed = (
        ""
        if git is None
        else ", nothing changed"
        if git.changes_sha256 is None
        else (f", with changes {git.changes_sha256[:12]}")
    )
    backbone = manifest.backbone or {}
    return {
        "command": " ".join(manifest.command),
        "seed": str(manifest.seed),
        "from, to": f"{manifest.started}, {manifest.finished or 'not finished'}; {manifest.steps} steps",
        "code": "no checkout" if git is None else f"commit {git.commit[:12]}{changed}",
        "data": f"{manifest.data.get('source')} ({str(manifest.data.get('fingerprint'))[:12]})",
        "backbone": f"{backbone.get('name')} ({str(backbone.get('fingerprint'))[:12]})" if backbone else "none",
        "weights": str(manifest.weights_sha256)[:12],
        "machine": f"{machine.cpu}, {machine.cores} cores, {machine.memory_gib} GiB; {'; '.join(machine.gpus) or 'no GPU'}",
        "computed on": f"{machine.device}, mixed precision {machine.mixed_precision}, processes {machine.processes}, "
        f"threads {machine.threads} each",
        "Python": f"{manifest.python}, {manifest.platform}",
        "versions": ", ".join(f"{name} {version}" for name, version in manifest.versions.items()),
    }


def seed_groups(systems: Sequence[tuple[str, Loaded]]) -> list[dict[int, Loaded]]:
    """Systems that differ by the seed of their training only, by seed; groups of one are left out."""
    groups: dict[str, dict[int, Loaded]] = {}
    for _, loaded in systems:
        manifest = manifest_of(loaded)
        if manifest is None:
            continue
        setup = manifest.setup()
        seed = setup.pop("seed")
        if setup.get("data_seed") == seed:
            del setup["data_seed"]
        own = loaded.evaluation
        rows = [(r.condition, r.task, r.language, r.subset, r.n) for r in own.rows]
        key = json.dumps([setup, own.data, own.split, rows], sort_keys=True)
        groups.setdefault(key, {}).setdefault(manifest.seed, loaded)
    return [group for group in groups.values() if len(group) > 1]


def seed_section(systems: Sequence[tuple[str, Loaded]]) -> Section:
    """Mean ± std of every metric over systems that differ by their seed only."""
    section = Section("seeds", "Over seeds")
    for group in seed_groups(systems):
        first = next(iter(group.values()))
        rows = over_seeds([loaded.evaluation for loaded in group.values()])
        for task in first.tasks:
            spoken = columns_of(first)
            own = {r.language: r for r in rows if (r.condition, r.task, r.subset) == (AS_IS, task.name, EVERYTHING)}
            own = {language: own[language] for language in spoken if language in own}
            names = dict.fromkeys(name for row in own.values() for name in row.metrics if name != "n_scored")
            lines = [[Cell("utterances n"), *(Cell(str(row.n)) for row in own.values())]]
            for name in names:
                line = [Cell(metric_words(name))]
                for row in own.values():
                    spread = row.metrics.get(name, Spread(None, None, []))
                    values = zip(group, spread.values, strict=False)
                    below = [f"{seed}: {'–' if value is None else number(value)}" for seed, value in values]
                    below += [f"baseline {number(row.baseline[name])}"] if name in row.baseline else []
                    line.append(Cell(str(spread), tuple(below)))
                lines.append(line)
            adapter = first.evaluation.checkpoint.get("adapter", "?")
            caption = (
                f"{adapter}, task {task.name}, split {first.evaluation.split}, {AS_IS}: mean ± sample standard deviation "
                f"over {len(group)} trainings that differ by their seed only ({', '.join(map(str, group))}), each below."
            )
            section.blocks.append(Table(["metric", *(language_words(s) for s in own)], lines, caption))
    return section


# --- sections: plots --------------------------------------------------------------------------------------------------


def with_key(caption: str, names: plots.Names) -> str:
    """The caption, with what numbers stand for where the plot's font lacks the names."""
    return f"{caption} ({names.key}.)" if names.key else caption


def confusion_section(main: Loaded) -> Section:
    """Confusion matrices of classes, by language."""
    section = Section("confusion", "Confusion")
    for task in main.tasks:
        if task.kind != "classification":
            continue
        names = plots.Names.of(task.label_names)
        for language in main.languages:
            known = main.known(AS_IS, task.name, language)
            if not known:
                continue
            counts = np.zeros((task.num_classes, task.num_classes), dtype=int)
            true, answer = (class_indices(task, values) for values in ([p.truth for p in known], [p.value for p in known]))
            np.add.at(counts, (true, answer), 1)
            caption = (
                f"{task.name}, {language}, n={len(known)}: truth in rows, answer in columns; in each cell the count and the "
                "share of its row, which is also the colour."
            )
            section.blocks.append(Picture(plots.confusion(counts, names.shown), with_key(caption, names)))
    return section


def score_plot_section(main: Loaded) -> Section:
    """Answered over true scores, and how often intervals hold the truth."""
    from llm_mer.decoding.numbers import ScoreDistribution

    section = Section("score-plots", "Scores and their intervals")
    levels = [round(0.1 * i, 1) for i in range(1, 10)]
    for task in main.tasks:
        if task.kind != "regression":
            continue
        observed: dict[str, list[float]] = {}
        counted = []
        for language in main.languages:
            known = main.known(AS_IS, task.name, language)
            row = main.evaluation.find(AS_IS, task.name, language)
            if not known or row is None:
                continue
            truth = np.array([float(p.truth) for p in known if p.truth is not None])
            value = np.array([float(p.value) for p in known])
            intervals = np.array([p.interval for p in known]) if all(p.interval is not None for p in known) else None
            low, high = task.require_range()
            bounds = (min(low, truth.min(), value.min()), max(high, truth.max(), value.max()))
            caption = f"{task.name}, {language}, n={row.n}: answer over truth; the dashed line is answer = truth."
            for name in ("mae", "corr"):
                caption += f" {METRIC_WORDS[name][0]} {number(row.metrics[name])}." if name in row.metrics else ""
            if intervals is not None and "coverage80" in row.metrics:
                caption += f" Bars are 80 % intervals; {number(row.metrics['coverage80'])} of the truths lie inside."
            section.blocks.append(Picture(plots.score_scatter(truth, value, intervals, bounds), caption))
            if all(p.probabilities and len(p.probabilities) == len(p.log_probabilities) for p in known):
                grid = np.array([float(score) for score in known[0].probabilities])
                spread = ScoreDistribution(grid, np.exp([p.log_probabilities for p in known]))
                observed[language] = [interval_coverage(truth, spread.interval(level)) for level in levels]
                counted.append(f"{language} n={len(known)}")
        if observed:
            caption = (
                f"{task.name}, {', '.join(counted)}: share of truths inside the central interval of each mass. Below the "
                "dashed line the distributions are too narrow, above it too wide."
            )
            section.blocks.append(Picture(plots.coverage(levels, observed), caption))
    return section


def calibration_section(main: Loaded) -> Section:
    """Reliability of class probabilities."""
    section = Section("calibration", "Calibration")
    for task in main.tasks:
        if task.kind != "classification":
            continue
        answers: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        said = []
        for language in main.languages:
            known = [p for p in main.known(AS_IS, task.name, language) if len(p.log_probabilities) == task.num_classes]
            row = main.evaluation.find(AS_IS, task.name, language)
            if not known or row is None:
                continue
            probabilities = np.exp(np.array([p.log_probabilities for p in known], dtype=np.float64))
            probabilities /= probabilities.sum(axis=1, keepdims=True)
            true = class_indices(task, [p.truth for p in known])
            answers[language] = (probabilities.max(axis=1), probabilities.argmax(axis=1) == true)
            said.append(f"{language} n={len(known)}, ECE {number(row.metrics.get('ece', float('nan')))}")
        if answers:
            caption = (
                f"{task.name}; {'; '.join(said)}: share of right answers over confidence, in 15 bins; marker area is the "
                "share of answers in the bin, counted below. Below the dashed line the model is too sure."
            )
            section.blocks.append(Picture(plots.reliability(answers), caption))
    return section


def grouping(main: Loaded) -> tuple[list[Prediction], list[str], list[str], str]:
    """Predictions whose diagnostics are shown, the class of each, the classes, and the word for them.

    Diagnostics belong to the utterance and the question; those of the first classification task are taken. With scores
    alone the sign of the truth is the class.
    """
    task = main_class_task(main)
    if task is not None:
        known = main.known(AS_IS, task.name)
        names = [task.label_names[i] for i in class_indices(task, [p.truth for p in known])]
        return known, names, [n for n in task.label_names if n in names], task.name
    known = main.known(AS_IS, main.tasks[0].name) if main.tasks else []
    words = {-1: "negative", 0: "zero", 1: "positive"}
    signs = [words[int(np.sign(float(p.truth)))] for p in known if p.truth is not None]
    return known, signs, [w for w in words.values() if w in signs], "sign of the true score"


def part_names(name: str, count: int, modalities: Sequence[str], classes: Sequence[str]) -> list[str]:
    """What the components of a diagnostic are; numbers where the files do not say."""
    listening = [m for m in modalities if m != "vision"]
    ordered = [m for m in ("vision", "audio", "text") if m in modalities]
    candidates: dict[str, list[list[str]]] = {
        "expert_weights": [list(EXPERTS)],
        "feature_gate": [list(EXPERTS)],
        "expert_cosine": [["E1, E2", "E1, E3", "E2, E3"]],
        "modality_gates": [list(modalities)],
        "multimodal_gate": [list(modalities)],
        "fusion_weights": [list(modalities)],
        "label_gate": [list(modalities), listening],
        "label_focus": [list(modalities), listening],
        "unimodal_gate": [
            [f"{query}←{key}" for query in modalities for key in modalities],
            [f"{query}←{key}" for query in modalities for key in modalities if query != key and len(modalities) > 2],
        ],
        "label_similarity": [[*classes, *(f"score bin {i + 1}" for i in range(count - len(classes)))]],
        "stream_gates": [
            [f"{role} {m}" for role in ("speaker", "interlocutor") for m in modalities],
            [f"speaker {m}" for m in modalities],
        ],
        **{
            f"gate_{kind}": [[f"{a}→{b}" for a in ordered for b in ordered if a != b]]
            for kind in ("mean", "variance", "used")
        },
    }
    for names in candidates.get(name, []):
        if len(names) == count:
            return names
    return [str(i + 1) for i in range(count)]


def vectors(predictions: Sequence[Prediction], name: str) -> np.ndarray | None:
    """A diagnostic of every prediction as ``(N, k)``; None where it is missing or is not one vector each."""
    rows = [np.asarray(p.diagnostics[name], dtype=np.float64) for p in predictions if name in p.diagnostics]
    if len(rows) < len(predictions) or not rows or rows[0].ndim != 1 or not len(rows[0]) or len({r.shape for r in rows}) > 1:
        return None
    return np.stack(rows)


def means(values: np.ndarray, group: Sequence[str], groups: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of ``(N, k)`` in each group: two ``(groups, k)``."""
    member = np.array(group)
    chosen = [values[member == name] for name in groups]
    return np.stack([c.mean(axis=0) for c in chosen]), np.stack([c.std(axis=0) for c in chosen])


def gate_section(main: Loaded) -> Section:
    """Expert weights and gates by class and by language, and along a conversation."""
    section = Section("gates", "Inside the adapter")
    known, names, classes, word = grouping(main)
    found = sorted({name for p in known for name in p.diagnostics} - {"features"}, key=lambda n: (n != "expert_weights", n))
    task = main_class_task(main)
    spoken = [p.language for p in known]
    for name in found:
        values = vectors(known, name)
        if values is None or values.shape[1] > 40:
            continue
        labels = () if task is None else task.label_names
        parts = plots.Names.of(
            part_names(name, values.shape[1], main.evaluation.checkpoint.get("modalities") or [], labels), "part"
        )
        title = DIAGNOSTIC_WORDS.get(name, name)
        level = 1 / values.shape[1] if values.shape[1] > 1 and np.allclose(values.sum(axis=1), 1, atol=1e-3) else None
        for what, group, groups in ((word, names, classes), ("language", spoken, main.languages)):
            groups = [g for g in groups if g in group]
            shown = plots.Names.of(groups)
            mean, spread = means(values, group, groups)
            counts = ", ".join(f"{g} {group.count(g)}" for g in groups)
            caption = f"{title} by {what}, n={len(known)} ({counts}): mean"
            if values.shape[1] > MOST_PARTS or mean.size > MOST_BARS:
                picture = plots.group_heat(shown.shown, parts.shown, mean)
                caption += "s."
            else:
                picture = plots.group_bars(shown.shown, parts.shown, mean, spread, title, level)
                caption += " and standard deviation over utterances."
                caption += " Dashed: equal weights." if level is not None else ""
            section.blocks.append(Picture(picture, with_key(with_key(caption, shown), parts)))
        if ("gate" in name or "weights" in name) and values.shape[1] <= len(plots.PALETTE):
            line = conversation(known, values, parts, title)
            section.blocks += [line] if line is not None else []
    return section


def conversation(known: Sequence[Prediction], values: np.ndarray, parts: plots.Names, title: str) -> Picture | None:
    """The longest conversation's gates, turn by turn; None without one of three turns."""
    groups: dict[tuple[str, str], list[int]] = {}
    for index, prediction in enumerate(known):
        if prediction.dialogue_id is not None:
            groups.setdefault((prediction.language, prediction.dialogue_id), []).append(index)
    if not groups:
        return None
    (language, dialogue), members = max(sorted(groups.items()), key=lambda item: len(item[1]))
    if len(members) < 3:
        return None
    members = sorted(members, key=lambda i: known[i].turn or 0)[:MOST_TURNS]
    ticks = [f"{known[i].turn} {known[i].speaker or ''}: {known[i].truth}" for i in members]
    image = plots.turns(values[members], parts.shown, plots.Names.of(ticks, "turn").shown, title)
    caption = f"{title} along the longest conversation, {dialogue} ({language}), n={len(members)} turns."
    return Picture(image, with_key(caption, parts))


def feature_section(main: Loaded) -> Section:
    """Fused features in two dimensions, when the evaluation kept them."""
    section = Section("features", "Fused features")
    known, names, classes, word = grouping(main)
    values = vectors(known, "features")
    if values is None or len(values) < 8:
        return section
    from sklearn.manifold import TSNE

    seed = main.evaluation.seed
    chosen = np.arange(len(values))
    if len(values) > MOST_POINTS:
        chosen = np.sort(np.random.default_rng(seed).choice(len(values), MOST_POINTS, replace=False))
    perplexity = min(30.0, (len(chosen) - 1) / 3)
    points = TSNE(2, perplexity=perplexity, init="pca", random_state=seed).fit_transform(values[chosen])
    shown = plots.Names.of(classes)
    word_of = dict(zip(classes, shown.shown, strict=True))
    image = plots.embedding(points, [word_of[names[i]] for i in chosen], shown.shown, [known[i].language for i in chosen])
    caption = (
        f"t-SNE of the fused vectors ({values.shape[1]} dimensions), n={len(chosen)}, seed {seed}, perplexity "
        f"{perplexity:.0f}: colour by {word}, marker by language. Distances between far groups mean little."
    )
    section.blocks.append(Picture(image, with_key(caption, shown)))
    return section


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


# --- sections: examples -----------------------------------------------------------------------------------------------


def evenly(items: Sequence[Any], count: int) -> list[Any]:
    """So many items from first to last at even distances."""
    if len(items) <= count:
        return list(items)
    return [items[int(i)] for i in np.linspace(0, len(items) - 1, count).round()]


def answer_text(value: Any) -> str:
    """A label as it is, a score with its decimals."""
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def example_section(main: Loaded) -> Section:
    """Right and wrong answers of every task and language, chosen by a rule and not by hand."""
    section = Section("examples", "Examples")
    for task in main.tasks:
        lines = []
        writes = any(p.generated is not None for p in main.known(AS_IS, task.name))
        for language in main.languages:
            known = main.known(AS_IS, task.name, language)
            if task.kind == "classification":
                sure = sorted(known, key=lambda p: (-p.probabilities.get(str(p.value), 0.0), p.id))
                right = [p for p in sure if p.value == p.truth]
                wrong = [p for p in sure if p.value != p.truth]
                chosen = evenly(right, EXAMPLES) + evenly(wrong, EXAMPLES)
            else:
                chosen = evenly(sorted(known, key=lambda p: (abs(float(p.value) - float(p.truth or 0)), p.id)), 2 * EXAMPLES)
            lines += [example_cells(p, writes) for p in chosen]
        if not lines:
            continue
        middle, last = ("probability", "result") if task.kind == "classification" else ("80 % interval", "error")
        columns = ["id", "language", "truth", "answer", *(["written freely"] if writes else []), "tags", middle, last]
        rule = "right, then wrong, each from the surest answer to the least sure"
        if task.kind == "regression":
            rule = "from the smallest error to the largest"
        caption = f"Task {task.name}, {AS_IS}: up to {2 * EXAMPLES} a language at even distances, {rule}. n={len(lines)}."
        section.blocks.append(Table(columns, lines, caption, heads=len(columns) - 2))
    return section


def example_cells(p: Prediction, writes: bool) -> list[Cell]:
    """One answer as a row."""
    line = [Cell(p.id), Cell(p.language), Cell(answer_text(p.truth)), Cell(answer_text(p.value))]
    if writes:
        line.append(Cell("–" if p.generated is None else p.generated or "(nothing)"))
    line.append(Cell(", ".join(p.tags) or "–"))
    if isinstance(p.value, str):
        right = p.value == p.truth
        probability = p.probabilities.get(p.value)
        line.append(Cell("–" if probability is None else number(probability)))
        line.append(Cell("right" if right else "wrong", (), tone_of(right)))
    else:
        line.append(Cell("–" if p.interval is None else f"[{p.interval[0]:.2f}, {p.interval[1]:.2f}]"))
        line.append(Cell(number(abs(float(p.value) - float(p.truth or 0)))))
    return line


def inference_section(path: Path) -> Section:
    """What ``infer.py`` wrote.

    Raises:
        UserError: no such file, or a line that is not one of ``infer.py``.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; write it with `python infer.py --checkpoint … --output …`")
    entries = []
    written = path.read_text(encoding="utf-8").split("\n")  # not splitlines: a text may hold what it takes for a line's end
    for count, text in enumerate(written[:-1] if written[-1] == "" else written, 1):
        try:
            entry = json.loads(text)
        except json.JSONDecodeError as error:
            raise UserError(f"{path}:{count}: not JSON: {error}") from None
        if not isinstance(entry, dict) or "id" not in entry or not {"value", "error"} & entry.keys():
            raise UserError(f"{path}:{count}: not a line that infer.py writes (id with value, or id with error)")
        entries.append(entry)
    lines = []
    for entry in evenly(entries, 40):
        if "error" in entry:
            lines.append([Cell(str(entry["id"])), Cell("–"), Cell("–"), Cell(str(entry["error"]), (), "bad"), Cell("–")])
            continue
        value = entry["value"]
        if isinstance(value, str):
            probability = entry.get("probabilities", {}).get(value)
            sure = "–" if probability is None else f"p {number(probability)}"
        else:
            sure = "–" if "interval" not in entry else "80 %: [{:.2f}, {:.2f}]".format(*entry["interval"])
        said = (f"written: {entry['generated']}",) if entry.get("generated") is not None else ()
        task, language = str(entry.get("task", "–")), str(entry.get("language", "–"))
        lines.append([Cell(str(entry["id"])), Cell(task), Cell(language), Cell(answer_text(value), said), Cell(sure)])
    caption = f"Answers of infer.py from {path.name}: {len(lines)} of {len(entries)} lines, at even distances."
    columns = ["id", "task", "language", "answer", "how sure"]
    return Section("inference", "Inference", [Table(columns, lines, caption, heads=4)] if lines else [])


# --- the page ---------------------------------------------------------------------------------------------------------


def description(main: Loaded) -> list[tuple[str, str]]:
    """What was evaluated, for the head of the page."""
    evaluation, checkpoint = main.evaluation, main.evaluation.checkpoint
    trained = checkpoint.get("trained_on") or {}
    parameters = checkpoint.get("parameters") or {}
    source, fingerprint = str(trained.get("source", "?")), str(trained.get("fingerprint", ""))[:12]
    counted = {AS_IS: main.predictions.get(AS_IS, [])}[AS_IS]
    utterances = len({(p.language, p.id) for p in counted})
    return [
        ("checkpoint", evaluation.name),
        ("adapter", f"{checkpoint.get('adapter', '?')}, reads {', '.join(checkpoint.get('modalities') or ['?'])}"),
        ("backbone", checkpoint.get("backbone") or "none (adapter alone)"),
        ("parameters", ", ".join(f"{name} {count:,}" for name, count in parameters.items()) or "not recorded"),
        ("evaluated on", f"{evaluation.data}, split {evaluation.split}, {utterances} utterances"),
        ("languages, tasks", f"{', '.join(main.languages)}; {', '.join(task.name for task in main.tasks)}"),
        ("trained on", f"{source} ({fingerprint})" if fingerprint else source),
        ("seeds", f"training {checkpoint.get('seed', '?')}, evaluation {evaluation.seed}"),
        ("versions", ", ".join(f"{k} {v}" for k, v in (checkpoint.get("versions") or {}).items()) or "not recorded"),
    ]


def build(config: ReportConfig) -> tuple[str, list[Fact]]:
    """The page as text, and the facts it states.

    Raises:
        UserError: an evaluation that is not there, or that does not belong to the others.
    """
    if not config.evaluations:
        raise UserError("--evaluations: name at least one checkpoint or evaluation folder")
    loaded = [load(place) for place in config.evaluations]
    main = loaded[0]
    text_only = None if config.text_only is None else load(config.text_only)
    systems = [*loaded, *([text_only] if text_only is not None else [])]
    named = [(f"{i}. {s.evaluation.name}", s) for i, s in enumerate(systems, 1)]
    facts = quickstart_facts(main, text_only) if config.facts == "quickstart" else []
    sections = []
    if facts:
        sections.append(Section("facts", "Three facts", [fact_block(fact) for fact in facts]))
    warnings = [Remark(f"{name}: {text}", "unsure") for name, s in named for text in s.evaluation.warnings]
    sections.append(
        Section("warnings", "Warnings", [*(warnings or [Remark("The evaluation found nothing to warn about.")])])
    )
    sections += [score_section(main), class_section(main), subset_section(main)]
    sections += [condition_section(main), noise_section(main)]
    sections += [system_section(named), seed_section(named)] if len(named) > 1 else []
    sections += [confusion_section(main), score_plot_section(main), calibration_section(main), gate_section(main)]
    sections += [feature_section(main), training_section(main), example_section(main)]
    sections += [inference_section(Path(config.inference))] if config.inference is not None else []
    sections += [run_section(named)]
    note = config.note if config.note is not None else SYNTHETIC_NOTE if facts else ""
    adapter = main.evaluation.checkpoint.get("adapter", main.evaluation.name)
    page = render(
        title=config.title or f"{adapter} on {main.evaluation.data}",
        note=note,
        description=description(main),
        sections=[section for section in sections if section.blocks],
    )
    return page, facts


def render(**values: Any) -> str:
    """Fill the page. Whatever comes from a file is escaped by the template engine; nothing is marked safe."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    return environment.from_string(PAGE).render(**values)


def run(config: ReportConfig) -> str:
    """``llm-mer report``: write the page; returns the facts as text and the file's name."""
    output = Path(config.output)
    if output.is_dir():
        raise UserError(f"--output {output}: it is a folder; name the HTML file to write")
    page, facts = build(config)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(page, encoding="utf-8")
    written = f"written to {output} ({len(page.encode('utf-8')) / 1024:.0f} KiB)"
    return "\n".join([*([facts_text(facts)] if facts else []), written])


PAGE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{{ title }}</title>
<style>
:root { --ink: #1f2328; --soft: #57606a; --line: #d8dee4; --back: #f6f8fa; --blue: #0b5cad;
  --good: #0a6640; --goodback: #e3f5ec; --bad: #9a2b00; --badback: #fdebe2; --unsure: #6b4e00; --unsureback: #fff6d9; }
* { box-sizing: border-box; }
body { margin: 0; color: var(--ink); background: #fff; line-height: 1.5; font-size: 16px;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, "PingFang SC", "Microsoft YaHei",
  "Noto Sans CJK SC", sans-serif; }
main, header { max-width: 1160px; margin: 0 auto; padding: 0 20px; }
header { padding-top: 28px; }
h1 { font-size: 1.75rem; line-height: 1.25; margin: 0 0 12px; overflow-wrap: anywhere; }
h2 { font-size: 1.3rem; margin: 44px 0 12px; padding-bottom: 6px; border-bottom: 1px solid var(--line); }
h3 { font-size: 1.05rem; margin: 0; line-height: 1.35; }
p { margin: 8px 0; max-width: 80ch; }
a { color: var(--blue); }
dl { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: 4px 18px; margin: 16px 0; }
dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; }
nav { margin: 16px 0 0; }
nav a { display: inline-block; margin: 0 14px 4px 0; }
.remark { padding: 10px 14px; border-left: 4px solid var(--line); background: var(--back); max-width: none;
  overflow-wrap: anywhere; }
.remark.unsure { border-color: #c99a00; background: var(--unsureback); }
.scroll { overflow-x: auto; margin: 12px 0 4px; }
table { border-collapse: collapse; font-size: 0.9rem; font-variant-numeric: tabular-nums; }
th, td { padding: 6px 12px; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top;
  white-space: nowrap; }
th { background: var(--back); font-weight: 600; vertical-align: bottom; }
th.word, td.word { text-align: left; white-space: normal; min-width: 5.5em; max-width: 24em; }
tbody tr:hover { background: #fafbfc; }
td small { display: block; color: var(--soft); font-size: 0.82em; }
.caption, figcaption { color: var(--soft); font-size: 0.86rem; margin: 4px 0 22px; max-width: 92ch;
  overflow-wrap: anywhere; }
td.good, .good .verdict { color: var(--good); font-weight: 600; }
td.bad, .bad .verdict { color: var(--bad); font-weight: 600; }
td.unsure, .unsure .verdict { color: var(--unsure); font-weight: 600; }
.fact { border: 1px solid var(--line); border-left-width: 6px; border-radius: 6px; padding: 14px 18px; margin: 14px 0; }
.fact.good { border-left-color: #12a06a; }
.fact.bad { border-left-color: #d55e00; }
.fact.unsure { border-left-color: #c99a00; }
.fact .head { display: flex; flex-wrap: wrap; gap: 6px 16px; justify-content: space-between; align-items: baseline; }
.verdict { padding: 2px 10px; border-radius: 999px; font-size: 0.9rem; white-space: nowrap; }
.good .verdict { background: var(--goodback); }
.bad .verdict { background: var(--badback); }
.unsure .verdict { background: var(--unsureback); }
.rule { color: var(--soft); font-size: 0.9rem; }
.figures { display: flex; flex-wrap: wrap; gap: 10px 28px; align-items: flex-start; }
figure { margin: 8px 0; flex: 0 1 auto; max-width: 100%; }
figure img { display: block; max-width: 100%; height: auto; }
summary { cursor: pointer; color: var(--blue); margin: 8px 0; }
footer { color: var(--soft); font-size: 0.86rem; margin: 48px 0 32px; }
@media (max-width: 600px) {
  main, header { padding-left: 14px; padding-right: 14px; }
  h1 { font-size: 1.4rem; }
  dl { grid-template-columns: minmax(0, 1fr); gap: 0; }
  dd { margin-bottom: 8px; }
  th, td { padding: 5px 8px; }
  .fact { padding: 12px; }
}
@media print { .scroll { overflow: visible; } figure, .fact { break-inside: avoid; } }
</style>
</head>
<body>
{% macro table(block) %}
<div class="scroll" tabindex="0">
<table>
<thead><tr>
{% for column in block.columns %}<th scope="col"{% if loop.index0 < block.heads %} class="word"{% endif %}>{{ column }}</th>
{% endfor %}
</tr></thead>
<tbody>
{% for row in block.rows %}
<tr>{% for cell in row %}<td class="{{ 'word' if loop.index0 < block.heads }} {{ cell.tone }}">{{ cell.text }}
{%- for text in cell.below %}<small>{{ text }}</small>{% endfor %}</td>{% endfor %}</tr>
{% endfor %}
</tbody>
</table>
</div>
{% if block.caption %}<p class="caption">{{ block.caption }}</p>{% endif %}

{% endmacro %}
<header>
<h1>{{ title }}</h1>
{% if note %}<p class="remark unsure">{{ note }}</p>{% endif %}

<dl>
{% for name, value in description %}<dt>{{ name }}</dt><dd>{{ value }}</dd>
{% endfor %}
</dl>
<nav aria-label="Contents">
{% for section in sections %}<a href="#{{ section.name }}">{{ section.title }}</a>
{% endfor %}
</nav>
</header>
<main>
{% for section in sections %}
<section id="{{ section.name }}">
<h2>{{ section.title }}</h2>
{% for run in section.runs %}
{% if run[0].kind == "picture" %}
<div class="figures">
{% for block in run %}
<figure style="width: {{ block.image.width }}px"><img src="{{ block.image.address }}" width="{{ block.image.width }}" \
alt="{{ block.caption }}"><figcaption>{{ block.caption }}</figcaption></figure>
{% endfor %}
</div>
{% else %}
{% for block in run %}
{% if block.kind == "verdict" %}
<div class="fact {{ block.tone }}">
<div class="head"><h3>{{ block.fact.claim }}</h3><span class="verdict">{{ block.fact.verdict }}</span></div>
<p class="rule">Rule: {{ block.fact.rule }}</p>
{% if block.fact.why %}<p>Why: {{ block.fact.why }}.</p>{% endif %}

{% if block.table.rows %}{{ table(block.table) }}{% endif %}

</div>
{% elif block.kind == "remark" %}
<p class="remark {{ block.tone }}">{{ block.text }}</p>
{% elif block.folded %}
<details><summary>{{ block.folded }}</summary>
{{ table(block) }}
</details>
{% else %}
{{ table(block) }}
{% endif %}
{% endfor %}
{% endif %}
{% endfor %}
</section>
{% endfor %}
<footer>Written by llm-mer report. Every number is read from the evaluation's files; intervals are 95 % bootstrap
percentiles over utterances.</footer>
</main>
</body>
</html>
"""
