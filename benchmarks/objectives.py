"""What answers best on MOSI at equal training: own head, read-out, scored answers of each objective, free generation?

`experiments.sh objectives` trains. Mean absolute error and polarity against the loss over tokens on the same test sentences,
the share of answers that cannot be read, and the probability that the language model leaves to other texts than answers.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from clean_bench import mean_with_interval
from common import options, report

FULL, READ = "full", "read-out-true"
SYSTEMS = (
    ("own head", FULL, "head_value"),
    ("read-out, beside tokens", READ, "read_out"),
    ("read-out alone", "read-out-true-loss-weights-lm=0", "read_out"),
    ("tokens", FULL, "value"),
    ("tokens, beside a read-out", READ, "value"),
    ("answers, crps", "objective-answers", "value"),
    ("answers, absolute error", "objective-answers-number-objective-absolute-error", "value"),
    ("free generation", "generation", "parsed"),
)
"""What answers, the run it is of, and the field of a prediction that holds it."""


def rows_of(run: Path) -> dict[tuple[str, str], dict[str, object]]:
    """The predictions of a run, by task and utterance."""
    lines = (run / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    found = [row for row in map(json.loads, lines) if row["condition"] == "as is"]
    return {(row["task"], row["id"]): row for row in found}


def folder_of(runs: Path, name: str, seed: int) -> Path | None:
    """Where a run's predictions are; None where it has not been run."""
    found = [runs / name] if name == "generation" else list(runs.glob(f"*-llama-{name}-{seed}"))
    return next((folder for folder in found if (folder / "predictions.jsonl").is_file()), None)


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--runs", type=Path, default=Path("runs/experiments/objectives"), help="what experiments.sh wrote")
    parser.add_argument("--seed", type=int, default=1111, help="of the runs")
    arguments = parser.parse_args()
    folders = {run: folder_of(arguments.runs, run, arguments.seed) for _, run, _ in SYSTEMS}
    found = {run: rows_of(folder) for run, folder in folders.items() if folder is not None}
    if FULL not in found:
        parser.error(f"--runs {arguments.runs}: no run of the loss over tokens; run benchmarks/experiments.sh objectives")
    tokens = found[FULL]
    ids = {task: [key for key in tokens if key[0] == task] for task in ("sentiment", "polarity")}
    videos = {task: [str(tokens[key]["dialogue_id"]) for key in keys] for task, keys in ids.items()}

    def errors(rows: dict[tuple[str, str], dict[str, object]], field: str) -> np.ndarray:
        """Absolute error of each sentence, NaN where the answer could not be read."""
        values = [(rows[key].get(field), rows[key]["truth"]) for key in ids["sentiment"]]
        return np.array([np.nan if value is None else abs(float(value) - float(truth)) for value, truth in values])  # type: ignore[arg-type]

    base, table = errors(tokens, "value"), []
    for name, run, field in SYSTEMS:
        if run not in found:
            continue
        rows = found[run]
        own = errors(rows, field)
        read = ~np.isnan(own)
        clusters = [video for video, kept in zip(videos["sentiment"], read, strict=True) if kept]
        right = np.array([float(rows[key].get(field) == rows[key]["truth"]) for key in ids["polarity"]])
        missed = [rows[key].get(field) is None for task in ids for key in ids[task]]
        difference = mean_with_interval((own - base)[read], clusters, signed=True) if name != "tokens" else ""
        cells = [mean_with_interval(own[read], clusters), difference, mean_with_interval(right, videos["polarity"])]
        masses = [rows[key].get("outside_mass") for key in ids["polarity"]] if field == "value" else []
        outside = f"{np.mean(np.exp(np.array(masses, dtype=float))):.2f}" if masses else ""
        table.append([name, *cells, f"{np.mean(missed):.3f}", outside])
    head = ["what answers", "MAE", "MAE − tokens", "polarity, accuracy", "unparseable", "outside, polarity"]
    absent = sorted({run for _, run, _ in SYSTEMS} - set(found))
    notes = (
        f"Test, n = {len(ids['sentiment'])} sentences of {len(set(videos['sentiment']))} videos, English, gated projector, "
        f"tiny bilingual Llama, three epochs, seed {arguments.seed} alone; 95 % intervals over videos, drawn whole. The "
        "median of a scored distribution is the answer; the MAE of free generation is over the answers that could be read."
    )
    if absent:
        notes += f" Not run: {', '.join(absent)}."
    report("objectives", __doc__, head, table, notes, arguments.quick)


if __name__ == "__main__":
    main()
