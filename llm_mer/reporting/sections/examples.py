"""Single utterances: examples of an evaluation, and answers of an inference run."""

from __future__ import annotations

from pathlib import Path

from llm_mer.errors import UserError
from llm_mer.evaluation.conditions import AS_IS
from llm_mer.inference.prediction import Prediction
from llm_mer.reporting.blocks import Cell, Section, Table
from llm_mer.reporting.facts import LoadedEvaluation
from llm_mer.reporting.wording import answer_text, evenly_spaced, format_number, verdict_tone
from llm_mer.storage.json_lines import read_json_lines

EXAMPLES = 4


def example_section(main: LoadedEvaluation) -> Section:
    """Right and wrong answers of every task and language, selected by a fixed rule."""
    section = Section("examples", "Examples")
    for task in main.tasks:
        lines = []
        has_generated = any(p.generated is not None for p in main.known(AS_IS, task.name))
        for language in main.languages:
            known = main.known(AS_IS, task.name, language)
            if task.kind == "classification":
                confidence = sorted(known, key=lambda p: (-p.probabilities.get(str(p.value), 0.0), p.id))
                right = [p for p in confidence if p.value == p.truth]
                wrong = [p for p in confidence if p.value != p.truth]
                chosen = evenly_spaced(right, EXAMPLES) + evenly_spaced(wrong, EXAMPLES)
            else:
                chosen = evenly_spaced(
                    sorted(known, key=lambda p: (abs(float(p.value) - float(p.truth or 0)), p.id)), 2 * EXAMPLES
                )
            lines += [example_cells(p, has_generated) for p in chosen]
        if not lines:
            continue
        middle, last = ("probability", "result") if task.kind == "classification" else ("80 % interval", "error")
        columns = ["id", "language", "truth", "answer", *(["written freely"] if has_generated else []), "tags", middle, last]
        rule = "right, then wrong, each from the most to the least confident answer"
        if task.kind == "regression":
            rule = "from the smallest error to the largest"
        caption = f"Task {task.name}, {AS_IS}: up to {2 * EXAMPLES} per language, evenly spaced, {rule}. n={len(lines)}."
        section.blocks.append(Table(columns, lines, caption, heads=len(columns) - 2))
    return section


def example_cells(p: Prediction, has_generated: bool) -> list[Cell]:
    """One answer as a row."""
    line = [Cell(p.id), Cell(p.language), Cell(answer_text(p.truth)), Cell(answer_text(p.value))]
    if has_generated:
        line.append(Cell("–" if p.generated is None else p.generated or "(nothing)"))
    line.append(Cell(", ".join(p.tags) or "–"))
    if isinstance(p.value, str):
        right = p.value == p.truth
        probability = p.probabilities.get(p.value)
        line.append(Cell("–" if probability is None else format_number(probability)))
        line.append(Cell("right" if right else "wrong", (), verdict_tone(right)))
    else:
        line.append(Cell("–" if p.interval is None else f"[{p.interval[0]:.2f}, {p.interval[1]:.2f}]"))
        line.append(Cell(format_number(abs(float(p.value) - float(p.truth or 0)))))
    return line


def inference_section(path: Path) -> Section:
    """The answers written by ``infer.py``.

    Raises:
        UserError: no such file, or a line that ``infer.py`` does not write.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; write it with `python infer.py --checkpoint … --output …`")
    entries = []
    for where, entry in read_json_lines(path):
        if "id" not in entry or not {"value", "error"} & entry.keys():
            raise UserError(f"{where}: not a line that infer.py writes (id with value, or id with error)")
        entries.append(entry)
    lines = []
    for entry in evenly_spaced(entries, 40):
        if "error" in entry:
            lines.append([Cell(str(entry["id"])), Cell("–"), Cell("–"), Cell(str(entry["error"]), (), "bad"), Cell("–")])
            continue
        value = entry["value"]
        if isinstance(value, str):
            probability = entry.get("probabilities", {}).get(value)
            confidence = "–" if probability is None else f"p {format_number(probability)}"
        else:
            confidence = "–" if "interval" not in entry else "80 %: [{:.2f}, {:.2f}]".format(*entry["interval"])
        generated_text = (f"written: {entry['generated']}",) if entry.get("generated") is not None else ()
        task, language = str(entry.get("task", "–")), str(entry.get("language", "–"))
        lines.append(
            [Cell(str(entry["id"])), Cell(task), Cell(language), Cell(answer_text(value), generated_text), Cell(confidence)]
        )
    caption = f"Answers of infer.py from {path.name}: {len(lines)} of {len(entries)} lines, evenly spaced."
    columns = ["id", "task", "language", "answer", "confidence"]
    return Section("inference", "Inference", [Table(columns, lines, caption, heads=4)] if lines else [])
