"""Do the gates notice when words contradict voice and face?

Reads what ``llm-mer compare`` left (``predictions.jsonl`` of every run) and compares each gate's mean on the corpus'
``conflict`` utterances, whose words speak of another emotion than voice and face, with its mean on ``emotional_words``,
where all three agree. A gate that weighs by reliability would take from the text and give to the others.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from common import options, report

from llm_mer.adapters.diagnostics import DiagnosticInfo
from llm_mer.experiments.comparison.results import RUN

USED = {"gate_mean": "gate_used"}
"""Where a gate says of each utterance which of its columns it used."""
AGREE, CONFLICT = "emotional_words", "conflict"
RESAMPLES = 2000


def gates_by_subset(predictions: Path, task: str, gates: Iterable[str]) -> dict[str, dict[str, np.ndarray]]:
    """``{diagnostic: {subset: (n, gates)}}`` of one run's answers as is, NaN where a gate was not used."""
    found: dict[str, dict[str, list[list[float]]]] = {}
    with predictions.open(encoding="utf-8") as stream:
        for line in stream:
            entry = json.loads(line)
            if entry.get("condition", "as is") != "as is" or entry["task"] != task:
                continue
            diagnostics = entry.get("diagnostics", {})
            for name in gates:
                if name not in diagnostics:
                    continue
                values = np.ravel(diagnostics[name]).astype(float)
                if name in USED:
                    values[np.ravel(diagnostics[USED[name]]) == 0] = np.nan
                for subset in (AGREE, CONFLICT):
                    if subset in entry.get("tags", ()):
                        found.setdefault(name, {}).setdefault(subset, []).append(values.tolist())
    return {name: {subset: np.array(rows) for subset, rows in by.items()} for name, by in found.items()}


def gates_of(run: Path) -> dict[str, DiagnosticInfo]:
    """The weights and gates a run's adapter has, as its ``run.json`` says; none where that is too old to say."""
    path = run / RUN
    entry = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    found = [DiagnosticInfo.from_dict(info) for info in entry.get("diagnostics", [])]
    return {info.name: info for info in found if info.over_turns}


def difference(agree: np.ndarray, conflict: np.ndarray, seed: int = 0) -> tuple[float, float, float]:
    """Mean on conflict minus mean where all agree, with its 95 % bootstrap interval over utterances."""
    generator = np.random.default_rng(seed)
    drawn = [
        values[generator.integers(0, len(values), (RESAMPLES, len(values)))].mean(axis=1) for values in (conflict, agree)
    ]
    low, high = np.quantile(drawn[0] - drawn[1], [0.025, 0.975])
    return float(conflict.mean() - agree.mean()), float(low), float(high)


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--runs", nargs="+", required=True, help="folders `llm-mer compare` wrote")
    parser.add_argument("--task", default="emotion")
    arguments = parser.parse_args()
    files = sorted(file for folder in arguments.runs for file in Path(folder).glob("*/predictions.jsonl"))
    if not files:
        parser.error(f"no */predictions.jsonl under {' '.join(arguments.runs)}: run `llm-mer compare` first")
    table = []
    for file in files:
        gates = gates_of(file.parent)
        for name, subsets in gates_by_subset(file, arguments.task, gates).items():
            if set(subsets) != {AGREE, CONFLICT}:
                continue
            for place, label in enumerate(gates[name].parts):
                columns = (subsets[subset][:, place] for subset in (AGREE, CONFLICT))
                agree, conflict = (values[~np.isnan(values)] for values in columns)
                if not len(agree) or not len(conflict):
                    continue
                shift, low, high = difference(agree, conflict)
                mark = "*" if low > 0 or high < 0 else ""
                means = [f"{values.mean():.3f}" for values in (agree, conflict)]
                row = [file.parent.name, name, label, f"{len(agree)} / {len(conflict)}", *means]
                table.append([*row, f"{shift:+.3f} [{low:+.3f}, {high:+.3f}]{mark}"])
    head = ["run", "gate", "of", "n agree / conflict", "mean, agree", "mean, conflict", "conflict − agree"]
    notes = "In brackets 95 % bootstrap intervals over utterances; * where they leave zero out."
    report("gates_on_conflict", __doc__, head, table, notes, arguments.quick)


if __name__ == "__main__":
    main()
