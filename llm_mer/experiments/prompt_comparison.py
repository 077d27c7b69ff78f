"""``llm-mer prompts compare``: how much a model's answers depend on the wording of its prompt.

One checkpoint is asked the same questions in every prompt, or one model is trained with each. The questions are the same, so
differences are paired by utterance.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llm_mer.errors import UserError
from llm_mer.experiments.options import PromptComparisonConfig
from llm_mer.prompting.tasks import Task
from llm_mer.prompting.templates import PromptTemplate, load_prompts, styles

if TYPE_CHECKING:
    from llm_mer.data.dataset import MerDataset
    from llm_mer.evaluation.p_values import PValue
    from llm_mer.inference.pipeline import MerPipeline
    from llm_mer.inference.prediction import Prediction

COMPARISON, TABLE, FIGURE, PREDICTIONS = "prompts.json", "prompts.md", "prompts.png", "predictions.jsonl"
OWN_PROMPT = "its own"


@dataclass(frozen=True)
class Variant:
    """One way to ask.

    Attributes:
        order: places of the labels in the list that the prompt shows; None: as the task has them.
        reference: the variant it is compared with: an order of labels with the same prompt as written, others with the
            checkpoint's own.
    """

    name: str
    templates: tuple[PromptTemplate, ...]
    order: tuple[int, ...] | None = None
    reference: str = OWN_PROMPT

    def asks(self, task: Task) -> bool:
        """Whether a template is for this task."""
        return any(template.can_ask(task) for template in self.templates)

    def task(self, task: Task) -> Task:
        """The task with its labels in this order, so that the list, the indices and the answers keep together."""
        if self.order is None or task.kind != "classification":
            return task
        return dataclasses.replace(task, labels=tuple(task.labels[place] for place in self.order))


@dataclass
class PromptRow:
    """One variant on one task and language.

    Attributes:
        reference: the variant it is compared with on the same utterances; None for the checkpoint's own prompt.
        p_value: of the paired bootstrap, adjusted for the number of variants of the task and language (Benjamini and
            Hochberg). changed: share of utterances whose answer is another one than the reference gives.
        unparseable: of free generations; None where nothing was generated. unit: what the intervals resample.
    """

    variant: str
    task: str
    language: str
    metric: str
    n: int
    baseline: float
    score: float
    interval: tuple[float, float]
    reference: str | None = None
    difference: float | None = None
    difference_interval: tuple[float, float] | None = None
    p_value: PValue | None = None
    changed: float | None = None
    unparseable: float | None = None
    unit: str = "utterance"


@dataclass
class Sensitivity:
    """How much the variants differ on one task and language.

    Attributes:
        spread: best minus worst score. unstable: share of utterances that do not get the same answer in all variants.
        deviation: of scores, the standard deviation over variants, averaged over utterances; None for classes.
    """

    task: str
    language: str
    metric: str
    variants: int
    spread: float
    unstable: float
    deviation: float | None = None


@dataclass
class PromptComparison:
    """Everything ``prompts.json`` holds."""

    checkpoint: str
    data: str
    split: str
    rows: list[PromptRow]
    sensitivity: list[Sensitivity]
    precision: str | None = None
    """What the language model computed with."""


def build_variants(config: PromptComparisonConfig, own: Sequence[PromptTemplate], tasks: Sequence[Task]) -> list[Variant]:
    """The checkpoint's own prompts first, then every other, each also with the labels in other orders where it lists them.

    Raises:
        UserError: a style, file or folder that is none, two of one name, or a negative number of orders.
    """
    if config.label_orders < 0:
        raise UserError(f"--label_orders {config.label_orders}: it must be at least 0")
    found = [Variant(OWN_PROMPT, tuple(own))]
    for source in config.prompts or styles():
        templates = tuple(load_prompts([source]))
        plain = {_content(template) for template in templates}
        if not plain <= {_content(template) for template in own}:
            found.append(Variant(Path(source).stem, templates))
    names = [variant.name for variant in found]
    if duplicates := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"--prompts: two are called {', '.join(duplicates)}; give the files other names")
    generator = np.random.default_rng(config.seed)
    sizes = {task.num_classes for task in tasks if task.kind == "classification"}
    for variant in list(found):
        listing = [t for t in variant.templates if "{labels}" in _all_text(t) or "{indexed_labels}" in _all_text(t)]
        for size in sorted(sizes) if listing else []:
            orders: list[tuple[int, ...]] = [tuple(range(size))]
            while len(orders) <= min(config.label_orders, math.factorial(size) - 1):
                order = tuple(int(i) for i in generator.permutation(size))
                if order not in orders:
                    orders.append(order)
            found += [
                Variant(f"{variant.name}, labels {' '.join(map(str, order))}", tuple(listing), order, variant.name)
                for order in orders[1:]
            ]
    return found


def _all_text(template: PromptTemplate) -> str:
    return template.system + template.prefix + template.suffix + template.task


def _content(template: PromptTemplate) -> str:
    return json.dumps({**template.to_dict(), "name": ""}, sort_keys=True)


def compare_prompts(
    config: PromptComparisonConfig, progress: bool = True
) -> tuple[PromptComparison, dict[str, list[Prediction]]]:
    """One checkpoint in every prompt: the comparison, and the predictions by variant.

    Raises:
        UserError: a checkpoint, data, prompt, task or language that do not fit one another.
    """
    from llm_mer.data.folds import check_fold
    from llm_mer.data.reading import find_split, read_utterances
    from llm_mer.inference.pipeline import MerPipeline
    from llm_mer.model.prompt_lengths import backbone_positions, check_prompt_lengths
    from llm_mer.training.run_data import check_prompts

    if not config.data:
        raise UserError("--data: name the store whose questions are asked")
    own = config.adapter if ":" in config.adapter else None
    pipeline = MerPipeline.from_pretrained(
        config.checkpoint,
        backbone=config.backbone,
        dtype=config.dtype,
        batch_size=config.batch_size,
        adapter=own,
        calibration=False,  # its temperatures were fitted with one of the prompts
    )
    if pipeline.predictor.processor.tokenizer is None:
        raise UserError(f"{config.checkpoint} holds an adapter alone, which reads no prompt")
    tasks = pipeline.named_tasks(config.tasks)
    variants = build_variants(config, pipeline.predictor.processor.prompts, tasks)
    splits, made, fingerprint = read_utterances(config.data, config.folds, config.fold)
    check_fold(pipeline.description.data, made, fingerprint, config.data)
    utterances = find_split(splits, config.split, config.data)

    def dataset(variant: Variant) -> MerDataset:
        variant_tasks = [variant.task(task) for task in tasks if variant.asks(task)]
        return pipeline.questions(
            utterances, variant_tasks, languages=config.languages, limit=config.limit, limit_seed=config.seed
        )

    datasets = {variant.name: dataset(variant) for variant in variants}
    datasets = {name: questions for name, questions in datasets.items() if len(questions)}
    if OWN_PROMPT not in datasets:
        known = ", ".join(task.name for task in pipeline.tasks)
        raise UserError(f"{config.data}, split {config.split!r}: no utterance has a label for {known}")
    positions = backbone_positions(pipeline.predictor.core.config)
    for variant in variants:
        if variant.name in datasets:
            check_prompts(datasets[variant.name], variant.templates)
            processor = dataclasses.replace(pipeline.predictor.processor, prompts=list(variant.templates))
            where = f"{config.data}, split {config.split!r}, prompt {variant.name!r}"
            check_prompt_lengths(processor, datasets[variant.name], positions, where)
    by_variant = {
        variant.name: predict(pipeline, variant, datasets[variant.name], config.generate, progress)
        for variant in variants
        if variant.name in datasets
    }
    references = {variant.name: variant.reference for variant in variants}
    rows, sensitivity = [], []
    for task in tasks:
        for language in sorted({p.language for p in by_variant[OWN_PROMPT]}):
            own_rows = compare_variants(by_variant, references, task, language, config.resamples, config.seed)
            rows += own_rows
            if len(own_rows) > 1:
                sensitivity.append(measure_sensitivity(by_variant, own_rows, task, language))
    data = f"{Path(config.data).name} ({fingerprint[:12]})"
    name = Path(config.checkpoint).resolve().name
    return PromptComparison(name, data, config.split, rows, sensitivity, pipeline.predictor.precision), by_variant


def predict(pipeline: MerPipeline, variant: Variant, dataset: Any, generate: bool, progress: bool) -> list[Prediction]:
    """Answers in a variant, their log-probabilities in the order of the task itself."""
    from llm_mer.inference.predictor import Predictor

    base = pipeline.predictor
    processor = dataclasses.replace(base.processor, prompts=list(variant.templates))
    predictor = Predictor(base.model, processor, base.batch_size, generate=generate, warns_of_distance=False)
    predictions = predictor.predict(dataset, progress=variant.name if progress else None)
    if variant.order is not None:
        for prediction in predictions:
            if isinstance(prediction.value, str):
                places = np.argsort(variant.order)
                prediction.log_probabilities = [prediction.log_probabilities[place] for place in places]
            prediction.head_value = None  # the adapter's own head knows the labels by their first order
    for prediction in predictions:
        prediction.diagnostics = {}
    return predictions


def _answers(by_variant: dict[str, list[Prediction]], name: str, task: Task, language: str) -> dict[str, Prediction]:
    return {p.id: p for p in by_variant[name] if p.task == task.name and p.language == language and p.truth is not None}


def compare_variants(
    by_variant: dict[str, list[Prediction]],
    references: Mapping[str, str],
    task: Task,
    language: str,
    resamples: int,
    seed: int,
) -> list[PromptRow]:
    """A row for each variant that asks this task in this language; the checkpoint's own first."""
    from llm_mer.evaluation.clusters import Clusters
    from llm_mer.evaluation.metrics import compute_metrics, majority_baseline
    from llm_mer.evaluation.p_values import adjusted_p
    from llm_mer.evaluation.resampling import metric_intervals, paired_difference, statistics_of

    metric = next(iter(statistics_of(task)))
    own = _answers(by_variant, OWN_PROMPT, task, language)
    ids = sorted(own)
    truth = [own[i].truth for i in ids]
    clusters = Clusters.of([own[i] for i in ids])
    rows: list[PromptRow] = []
    for name in by_variant:
        answers = _answers(by_variant, name, task, language)
        if sorted(answers) != ids or not ids:
            continue
        values = [answers[i].value for i in ids]
        row = PromptRow(
            name,
            task.name,
            language,
            metric,
            len(ids),
            float(majority_baseline(task, truth)[metric]),
            float(compute_metrics(task, truth, values)[metric]),
            metric_intervals(task, truth, values, resamples, seed, clusters).get(metric, (math.nan, math.nan)),
            unit=clusters.unit,
        )
        if any(answers[i].generated is not None for i in ids):
            row.unparseable = float(np.mean([answers[i].parsed is None for i in ids]))
        if name != OWN_PROMPT:
            row.reference = references[name]
            other = _answers(by_variant, row.reference, task, language)
            against = [other[i].value for i in ids]
            row.difference, row.difference_interval, row.p_value = paired_difference(
                task, metric, truth, values, against, resamples, seed, clusters
            )
            row.changed = float(np.mean([v != r for v, r in zip(values, against, strict=True)]))
        rows.append(row)
    others = [row for row in rows if row.p_value is not None]
    if others:
        adjusted = adjusted_p([row.p_value for row in others if row.p_value is not None])
        for row, p_value in zip(others, adjusted, strict=True):
            row.p_value = p_value
    return rows


def measure_sensitivity(
    by_variant: dict[str, list[Prediction]], rows: Sequence[PromptRow], task: Task, language: str
) -> Sensitivity:
    """How much scores and answers differ between the variants of ``rows``."""
    answers = [_answers(by_variant, row.variant, task, language) for row in rows]
    values = [[found[i].value for found in answers] for i in sorted(answers[0])]
    scores = [row.score for row in rows]
    deviation = None
    if task.kind == "regression":
        deviation = float(np.mean(np.std(np.array(values, dtype=np.float64), axis=1)))
    unstable = float(np.mean([len(set(own)) > 1 for own in values]))
    spread = max(scores) - min(scores)
    return Sensitivity(task.name, language, rows[0].metric, len(rows), spread, unstable, deviation)


def markdown(comparison: PromptComparison) -> str:
    """A table for each task and language, then how sensitive the model is."""
    from llm_mer.evaluation.clusters import units_of
    from llm_mer.evaluation.resampling import format_estimate

    lines: list[str] = []
    for task, language in dict.fromkeys((row.task, row.language) for row in comparison.rows):
        rows = [row for row in comparison.rows if (row.task, row.language) == (task, language)]
        generated = any(row.unparseable is not None for row in rows)
        first = rows[0]
        better = "lower is better" if first.metric == "mae" else "higher is better"
        baseline = f"majority or mean {first.baseline:.3f}"
        lines.append(f"### {task}, {language}: {first.metric} (n={first.n}, {baseline}, {better})\n")
        headers = ["prompt", first.metric, "difference", "answers changed"]
        headers += ["unparseable when free"] if generated else []
        lines += ["| " + " | ".join(headers) + " |", "|---" * len(headers) + "|"]
        for row in rows:
            cells = [row.variant, format_estimate(row.score, row.interval)]
            if row.difference is None or row.difference_interval is None or row.p_value is None:
                cells += ["", ""]
            else:
                verdict = "significant" if row.p_value.is_significant else "not told apart"
                significance = "" if math.isnan(row.p_value.value) else f", {row.p_value}, {verdict}"
                cells.append(format_estimate(row.difference, row.difference_interval, "+") + significance)
                cells.append(f"{row.changed:.3f}")
            if generated:
                cells.append("" if row.unparseable is None else f"{row.unparseable:.3f}")
            lines.append("| " + " | ".join(cells) + " |")
        lines.append("")
    if comparison.sensitivity:
        heading = "| task | prompts | best − worst | answers that are not the same in all | deviation of a score |"
        lines += ["### Sensitivity\n", heading]
        lines.append("|---|---|---|---|---|")
        for entry in comparison.sensitivity:
            deviation = "" if entry.deviation is None else f"{entry.deviation:.3f}"
            lines.append(
                f"| {entry.task}, {entry.language} | {entry.variants} | {entry.spread:.3f} ({entry.metric}) | "
                f"{entry.unstable:.3f} | {deviation} |"
            )
        lines.append("")
    computed = "" if comparison.precision is None else f" Computed in {comparison.precision}."
    lines.append(
        f"[95 % bootstrap interval over {units_of(comparison.rows)}]; an order of labels is compared with the same prompt "
        "as it is written, every other prompt with the checkpoint's own, on the same utterances; p of the paired bootstrap, "
        "adjusted for the number of prompts of a table (Benjamini and Hochberg), ≤ where no resample lies on the other side "
        f"of zero. Answers are scored, so none of these is unparseable.{computed}"
    )
    return "\n".join(lines)


def train_with_each_prompt(config: PromptComparisonConfig) -> str:
    """A model trained with each prompt, through ``llm-mer compare``: the YAML file's own prompt is the reference."""
    from llm_mer.experiments.comparison.compare import run as run_comparison
    from llm_mer.experiments.options import CompareConfig

    overrides = list(config.overrides)
    if config.languages:
        if len(config.languages) > 1:
            raise UserError("--languages: with --config name one, or leave it out for all")
        overrides.append(f"languages={config.languages[0]}")
    if config.tasks:
        raise UserError("--tasks: with --config the tasks are those of the YAML file")
    return run_comparison(
        CompareConfig(
            config=config.config,
            output=config.output or "runs/prompts",
            adapters=[config.adapter],
            ablations=[f"*:prompts={source}" for source in config.prompts or styles()],
            seeds=config.seeds,
            overrides=overrides,
            split=config.split,
            resamples=config.resamples,
        )
    )
