"""``llm-mer report``: one self-contained HTML page from evaluations, whose numbers are all read from their files."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from llm_mer.errors import UserError
from llm_mer.evaluation.conditions import AS_IS
from llm_mer.reporting.blocks import Remark, Section
from llm_mer.reporting.facts import Fact, LoadedEvaluation, facts_text, load_evaluation, quickstart_facts
from llm_mer.reporting.options import ReportConfig
from llm_mer.reporting.sections.adapter import feature_section, gate_section
from llm_mer.reporting.sections.answers import calibration_section, confusion_section, score_plot_section
from llm_mer.reporting.sections.dependence import dependence_section
from llm_mer.reporting.sections.examples import example_section, inference_section
from llm_mer.reporting.sections.scores import (
    class_section,
    condition_section,
    fact_block,
    noise_section,
    score_section,
    subset_section,
)
from llm_mer.reporting.sections.systems import precisions_of, run_section, seed_section, system_section
from llm_mer.reporting.sections.training import training_section
from llm_mer.reporting.sections.votes import votes_section
from llm_mer.storage.atomic_files import write_text_atomically
from llm_mer.storage.system_errors import naming_path

SYNTHETIC_NOTE = (
    "The data are the synthetic corpus of synthesised speech and rendered faces. It is a test bench for this program; "
    "scores on it say nothing about people."
)


def describe_evaluation(main: LoadedEvaluation) -> list[tuple[str, str]]:
    """Describe what was evaluated, for the top of the page."""
    evaluation, checkpoint = main.evaluation, main.evaluation.checkpoint
    trained = checkpoint.get("trained_on") or {}
    parameters = checkpoint.get("parameters") or {}
    source, fingerprint = str(trained.get("source", "?")), str(trained.get("fingerprint", ""))[:12]
    predictions = main.predictions.get(AS_IS, [])
    utterances = len({(p.language, p.id) for p in predictions})
    return [
        ("checkpoint", evaluation.name),
        ("adapter", f"{checkpoint.get('adapter', '?')}, reads {', '.join(checkpoint.get('modalities') or ['?'])}"),
        ("backbone", checkpoint.get("backbone") or "none (adapter alone)"),
        ("precision", checkpoint.get("precision") or "not recorded"),
        ("parameters", ", ".join(f"{name} {count:,}" for name, count in parameters.items()) or "not recorded"),
        ("evaluated on", f"{evaluation.data}, split {evaluation.split}, {evaluation.drawn or f'{utterances} utterances'}"),
        ("languages, tasks", f"{', '.join(main.languages)}; {', '.join(task.name for task in main.tasks)}"),
        ("trained on", f"{source} ({fingerprint})" if fingerprint else source),
        ("seeds", f"training {checkpoint.get('seed', '?')}, evaluation {evaluation.seed}"),
        ("versions", ", ".join(f"{k} {v}" for k, v in (checkpoint.get("versions") or {}).items()) or "not recorded"),
    ]


def different_questions(systems: Sequence[tuple[str, LoadedEvaluation]]) -> list[str]:
    """The warning for evaluations on other data, splits or draws than the first, whose scores do not compare."""
    questions = {name: f"{s.evaluation.data}, split {s.evaluation.split}" for name, s in systems}
    questions = {
        name: f"{questions[name]}, {s.evaluation.drawn}" if s.evaluation.drawn else questions[name] for name, s in systems
    }
    if len(set(questions.values())) == 1:
        return []
    listed = "; ".join(f"{name} on {question}" for name, question in questions.items())
    return [f"These systems were not evaluated on the same utterances, so their scores do not compare: {listed}."]


def build_page(config: ReportConfig) -> tuple[str, list[Fact]]:
    """Build the page as text, and the facts it states.

    Raises:
        UserError: a missing evaluation, or one that does not match the others.
    """
    if not config.evaluations:
        raise UserError("--evaluations: name at least one checkpoint or evaluation folder")
    loaded = [load_evaluation(place) for place in config.evaluations]
    main = loaded[0]
    text_only = None if config.text_only is None else load_evaluation(config.text_only)
    systems = [*loaded, *([text_only] if text_only is not None else [])]
    named = [(f"{i}. {s.evaluation.name}", s) for i, s in enumerate(systems, 1)]
    facts = quickstart_facts(main, text_only) if config.facts == "quickstart" else []
    sections = []
    if facts:
        sections.append(Section("facts", "Three facts", [fact_block(fact) for fact in facts]))
    warnings = [Remark(f"{name}: {text}", "unsure") for name, s in named for text in s.evaluation.warnings]
    warnings += [Remark(text, "unsure") for text in different_questions(named)]
    if len(precisions := precisions_of(named)) > 1:
        text = f"the systems were computed in {' and '.join(precisions)}, so part of a difference may be rounding"
        warnings.append(Remark(f"{text}; evaluate all with one --dtype.", "unsure"))
    sections.append(Section("warnings", "Warnings", [*(warnings or [Remark("No warnings.")])]))
    sections += [score_section(main), class_section(main), subset_section(main)]
    sections += [condition_section(main), dependence_section(main), noise_section(main)]
    sections += [system_section(named), seed_section(named)] if len(named) > 1 else []
    sections += [confusion_section(main), score_plot_section(main), calibration_section(main), votes_section(main)]
    sections += [gate_section(main), feature_section(main), training_section(main), example_section(main)]
    sections += [inference_section(Path(config.inference))] if config.inference is not None else []
    sections += [run_section(named)]
    note = config.note if config.note is not None else SYNTHETIC_NOTE if facts else ""
    adapter = main.evaluation.checkpoint.get("adapter", main.evaluation.name)
    page = render_page(
        title=config.title or f"{adapter} on {main.evaluation.data}",
        note=note,
        description=describe_evaluation(main),
        sections=[section for section in sections if section.blocks],
    )
    return page, facts


def render_page(**values: Any) -> str:
    """Render the page template. All values are escaped by the template engine; nothing is marked safe."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    return environment.from_string(
        resources.files("llm_mer.reporting").joinpath("page.html.jinja").read_text(encoding="utf-8")
    ).render(**values)


def run(config: ReportConfig) -> str:
    """``llm-mer report``: write the page; returns the facts as text and the file's name."""
    output = Path(config.output)
    if output.is_dir():
        raise UserError(f"--output {output}: is a folder; name the HTML file to write")
    if output.is_file() and not _is_page(output):
        raise UserError(f"--output {output}: holds something else than a page; name another file, or delete it")
    page, facts = build_page(config)
    with naming_path(output):
        output.parent.mkdir(parents=True, exist_ok=True)
    write_text_atomically(output, page)
    written = f"written to {output} ({len(page.encode('utf-8')) / 1024:.0f} KiB)"
    return "\n".join([*([facts_text(facts)] if facts else []), written])


def _is_page(path: Path) -> bool:
    """Whether a file is empty or begins as an HTML page does."""
    with path.open("rb") as file:
        beginning = file.read(1024).lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    return not beginning or beginning.startswith((b"<!doctype html", b"<html"))
