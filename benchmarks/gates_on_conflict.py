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
from llm_mer.evaluation.clusters import Clusters
from llm_mer.evaluation.resampling import expand, percentile_interval
from llm_mer.experiments.comparison.results import RUN

USED = {"gate_mean": "gate_used"}
"""Where a gate says of each utterance which of its columns it used."""
AGREE, CONFLICT = "emotional_words", "conflict"
RESAMPLES = 2000


Gates = tuple[np.ndarray, np.ndarray]
"""Values ``(n, gates)``, NaN where a gate was not used, and the dialogue of each, ``(n,)``; its id where it has none."""


def gates_by_subset(predictions: Path, task: str, gates: Iterable[str]) -> dict[str, dict[str, Gates]]:
    """``{diagnostic: {subset: gates}}`` of one run's answers as is."""
    found: dict[str, dict[str, list[tuple[list[float], str]]]] = {}
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
                        row = (values.tolist(), entry.get("dialogue_id") or entry["id"])
                        found.setdefault(name, {}).setdefault(subset, []).append(row)
    return {
        name: {subset: (np.array([v for v, _ in rows]), np.array([d for _, d in rows])) for subset, rows in by.items()}
        for name, by in found.items()
    }


def gates_of(run: Path) -> dict[str, DiagnosticInfo]:
    """The weights and gates a run's adapter has, as its ``run.json`` says; none where that is too old to say."""
    path = run / RUN
    entry = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    found = [DiagnosticInfo.from_dict(info) for info in entry.get("diagnostics", [])]
    return {info.name: info for info in found if info.over_turns}


def difference(agree: Gates, conflict: Gates, seed: int = 0) -> tuple[float, float, float]:
    """Mean on conflict minus mean where all agree, with its 95 % bootstrap interval over whole dialogues."""
    clusters = Clusters.named("dialogue", [*agree[1].tolist(), *conflict[1].tolist()])
    drawn = clusters.draw(RESAMPLES, seed)
    means = []
    for (values, _), index in zip((agree, conflict), np.split(clusters.index, [len(agree[1])]), strict=True):
        sums, sizes = (np.bincount(index, weights, minlength=clusters.count) for weights in (values, None))
        with np.errstate(invalid="ignore"):  # no utterance of a subset among the dialogues drawn
            means.append(drawn @ sums / (drawn @ sizes))
    spread = means[1] - means[0]
    low, high = percentile_interval(expand(spread[~np.isnan(spread)], clusters.count))
    return float(conflict[0].mean() - agree[0].mean()), low, high


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
                used = [~np.isnan(subsets[subset][0][:, place]) for subset in (AGREE, CONFLICT)]
                columns = zip((AGREE, CONFLICT), used, strict=True)
                agree, conflict = ((subsets[s][0][kept, place], subsets[s][1][kept]) for s, kept in columns)
                if not len(agree[0]) or not len(conflict[0]):
                    continue
                shift, low, high = difference(agree, conflict)
                mark = "*" if low > 0 or high < 0 else ""
                means = [f"{values.mean():.3f}" for values, _ in (agree, conflict)]
                row = [file.parent.name, name, label, f"{len(agree[0])} / {len(conflict[0])}", *means]
                table.append([*row, f"{shift:+.3f} [{low:+.3f}, {high:+.3f}]{mark}"])
    head = ["run", "gate", "of", "n agree / conflict", "mean, agree", "mean, conflict", "conflict − agree"]
    notes = "In brackets 95 % bootstrap intervals over dialogues; * where they leave zero out."
    report("gates_on_conflict", __doc__, head, table, notes, arguments.quick)


if __name__ == "__main__":
    main()
