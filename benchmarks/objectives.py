"""What is gained by training on the distribution of the admissible answers, on MOSI? (`experiments.sh objectives` trains)

Mean absolute error and polarity of each objective against the loss over tokens on the same test sentences, the adapter's own
head beside it, and how much probability the language model leaves to other texts than the admissible answers.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from clean_bench import mean_with_interval
from common import options, report

NAMES = {
    "full": "tokens",
    "objective-answers": "answers, crps",
    "objective-answers-number-objective-absolute-error": "answers, absolute error",
}


def rows_of(run: Path) -> dict[tuple[str, str], dict[str, object]]:
    """The predictions of a run, by task and utterance."""
    lines = (run / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    return {(row["task"], row["id"]): row for row in map(json.loads, lines)}


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--runs", type=Path, default=Path("runs/experiments/objectives"), help="what experiments.sh wrote")
    parser.add_argument("--seed", type=int, default=1111, help="of the runs")
    arguments = parser.parse_args()
    found = {}
    for folder, name in NAMES.items():
        (run,) = arguments.runs.glob(f"*-llama-{folder}-{arguments.seed}")
        found[name] = rows_of(run)
    first = next(iter(found.values()))
    ids = {task: [key for key in first if key[0] == task] for task in ("sentiment", "polarity")}
    videos = {task: [str(first[key]["dialogue_id"]) for key in keys] for task, keys in ids.items()}

    def errors(rows: dict[tuple[str, str], dict[str, object]], field: str) -> np.ndarray:
        return np.array([abs(float(rows[key][field]) - float(rows[key]["truth"])) for key in ids["sentiment"]])  # type: ignore[arg-type]

    def outside(rows: dict[tuple[str, str], dict[str, object]], task: str) -> str:
        return f"{np.mean(np.exp([rows[key]['outside_mass'] for key in ids[task]])):.2f}"

    table = []
    for name, rows in found.items():
        right = np.array([float(rows[key]["value"] == rows[key]["truth"]) for key in ids["polarity"]])
        own, base = errors(rows, "value"), errors(first, "value")
        difference = "" if rows is first else mean_with_interval(own - base, videos["sentiment"], signed=True)
        cells = [mean_with_interval(own, videos["sentiment"]), difference, mean_with_interval(right, videos["polarity"])]
        own_head = mean_with_interval(errors(rows, "head_value"), videos["sentiment"])
        table.append([name, *cells, own_head, outside(rows, "sentiment"), outside(rows, "polarity")])
    head = [
        "objective",
        "MAE",
        "MAE − tokens",
        "polarity, accuracy",
        "own head's MAE",
        "outside, scores",
        "outside, polarity",
    ]
    notes = (
        f"Test, n = {len(ids['sentiment'])} sentences of {len(set(videos['sentiment']))} videos, English, gated projector, "
        f"tiny bilingual Llama, three epochs, seed {arguments.seed} alone; 95 % intervals over videos, drawn whole. The "
        "median of the scored distribution is the answer."
    )
    report("objectives", __doc__, head, table, notes, arguments.quick)


if __name__ == "__main__":
    main()
