"""A readable table from ``comparison.json``: chosen conditions, one language a column, no p-values.

``python benchmarks/condense.py runs/experiments/adapters/comparison.json --conditions "as is" "text only"``
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("comparison", help="comparison.json of `llm-mer compare`")
    parser.add_argument("--conditions", nargs="+", default=["as is"])
    parser.add_argument("--tasks", nargs="+", help="default: all")
    parser.add_argument("--languages", nargs="+", default=["en", "zh"])
    parser.add_argument("--subsets", nargs="+", default=["all"])
    parser.add_argument("--no_intervals", action="store_true")
    options = parser.parse_args()
    rows = [
        row
        for row in json.loads(Path(options.comparison).read_text(encoding="utf-8"))["rows"]
        if row["condition"] in options.conditions
        and row["language"] in options.languages
        and row["subset"] in options.subsets
        and (options.tasks is None or row["task"] in options.tasks)
    ]
    columns = list(dict.fromkeys((r["task"], r["language"], r["subset"], r["metric"]) for r in rows))
    found = {(r["system"], r["condition"], r["task"], r["language"], r["subset"], r["metric"]): r for r in rows}
    systems = list(dict.fromkeys((r["system"], r["condition"]) for r in rows))

    def cell(system: str, condition: str, column: tuple[str, ...]) -> str:
        row = found.get((system, condition, *column))
        if row is None:
            return "–"
        low, high = row["cell"]["interval"]
        spread = f" ± {row['cell']['std']:.3f}" if row["seeds"] > 1 else ""
        return f"{row['cell']['mean']:.3f}{spread}" + ("" if options.no_intervals else f" [{low:.3f}, {high:.3f}]")

    heads = [
        " ".join([t, language, *([subset] if subset != "all" else []), metric]) for t, language, subset, metric in columns
    ]
    several = len(options.conditions) > 1
    print(f"| system |{' condition |' if several else ''} {' | '.join(heads)} |")
    print("|---" * (1 + several + len(columns)) + "|")
    first = [next(r for r in rows if (r["task"], r["language"], r["subset"], r["metric"]) == c) for c in columns]
    trivial = [f"{r['baseline']:.3f} (n={r['n']})" for r in first]
    print(f"| *majority or mean* |{' |' if several else ''} {' | '.join(trivial)} |")
    for system, condition in systems:
        cells = [cell(system, condition, column) for column in columns]
        print(f"| {system} |{f' {condition} |' if several else ''} {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
