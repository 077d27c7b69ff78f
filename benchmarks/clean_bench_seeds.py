"""The runs of ``clean_bench.py`` over several seeds: accuracy with the randomness of training in its interval.

Give each seed a folder of its own; the same command does the rest after a stop::

    python benchmarks/clean_bench.py --runs words speaker_label_token --seed 1111 --output runs/clean_bench
    python benchmarks/clean_bench.py --runs words speaker_label_token --seed 2222 --output runs/clean_bench_2222
    python benchmarks/clean_bench_seeds.py runs/clean_bench runs/clean_bench_2222 --data data/clean_bench

A run is shown where all folders have finished it. An interval is over the voice clips, drawn the same for all seeds, and the
seeds' own spread is added to it (Student's t, which is wide for two or three seeds). The differences are in pairs of rows:
against the run ``words``, the same language model on the transcript alone, and against logistic regression on the voice.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from clean_bench import ANSWERS, HERE, POOLED, RESAMPLES, RUNS, Answers, Voices, clip_of, load_answers
from common import RESULTS

from llm_mer.data.store import UtteranceStore
from llm_mer.evaluation.clusters import Clusters
from llm_mer.evaluation.resampling import format_estimate, paired_difference_over_seeds
from llm_mer.prompting.tasks import Task, get_task

SCORED, HEAD, POOL = "scored", "the adapter's own head", "pooled"


@dataclass
class Way:
    """One run's answers, each seed's ``(n,)``, on the test split, and each seed's accuracy on the validation split."""

    name: str
    test: list[np.ndarray]
    validation: list[float]


def answers_of(found: dict[str, Answers], way: str) -> np.ndarray | None:
    """``(n,)`` labels of the language model, the head or the pool; None where the run has none of that way."""
    if way == POOL:
        return found[POOLED].answer if POOLED in found else None
    values = found[ANSWERS].answer if way == SCORED else found[ANSWERS].head
    return values if (values != "").any() else None


def collect(folders: Sequence[Path]) -> tuple[np.ndarray, list[str], list[Way]]:
    """Truth ``(n,)``, clips and every way to answer of the runs that each folder has finished.

    Raises:
        SystemExit: if no run is finished everywhere, or the rows differ.
    """
    finished = [name for name in RUNS if all((f / name / "eval_test" / "evaluation.json").is_file() for f in folders)]
    if not finished:
        raise SystemExit("no run is finished in all of the folders")
    test = {name: [load_answers(folder / name, "test") for folder in folders] for name in finished}
    first = test[finished[0]][0][ANSWERS]
    if any(answers[ANSWERS].ids != first.ids for seeds in test.values() for answers in seeds):
        raise SystemExit("the runs were evaluated on different rows")
    ways = []
    for name in finished:
        valid = [load_answers(folder / name, "valid") for folder in folders]
        for way in (SCORED, HEAD, POOL):
            answers = [answers_of(seed, way) for seed in test[name]]
            held = [answers_of(seed, way) for seed in valid]
            if any(values is None for values in (*answers, *held)):
                continue
            right = [
                float((values == seed[ANSWERS].truth).mean())
                for values, seed in zip(held, valid, strict=True)
                if values is not None
            ]
            ways.append(Way(f"`{name}`, {way}", [values for values in answers if values is not None], right))
    return first.truth, [clip_of(identifier) for identifier in first.ids], ways


def voice_alone(store: Path) -> Way:
    """Logistic regression on the voice normalised by speaker, its strength chosen on validation data; no seed."""
    voices = Voices(UtteranceStore.open(store), by_speaker=True)
    fitted = voices.fit()
    validation = float(fitted.score(*voices.vectors("valid")))
    return Way(
        "logistic regression on the voice, normalised by speaker", [fitted.predict(voices.vectors("test")[0])], [validation]
    )


def estimate(task: Task, truth: np.ndarray, clusters: Clusters, first: Way, second: Way | None = None) -> str:
    """Accuracy of ``first``, or by how much it is above ``second``, over seeds and clips, with its interval."""
    answers = [values.tolist() for values in first.test]
    others = None if second is None else [values.tolist() for values in second.test]
    value, interval, _ = paired_difference_over_seeds(
        task, "accuracy", truth.tolist(), answers, others, RESAMPLES, 0, clusters
    )
    return format_estimate(value, interval, "" if second is None else "+")


def table(folders: Sequence[Path], task: Task, store: Path) -> str:
    """Markdown: a line for each run and way to answer."""
    truth, clips, ways = collect(folders)
    voice = voice_alone(store)
    clusters = Clusters.named("clip", clips)
    words = next((way for way in ways if way.name == f"`words`, {SCORED}"), None)
    head = (
        "",
        f"validation, mean of {len(folders)} seeds",
        f"test (n={len(truth)}, {len(set(clips))} clips)",
        "each seed",
        "− `words`, scored",
        "− logistic regression on the voice",
    )
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for way in (voice, *ways):
        each = ", ".join(f"{(values == truth).mean():.3f}" for values in way.test)
        against = "" if words is None or way is words else estimate(task, truth, clusters, way, words)
        beyond = "" if way is voice else estimate(task, truth, clusters, way, voice)
        cells = (way.name, f"{np.mean(way.validation):.3f}", estimate(task, truth, clusters, way), each, against, beyond)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, help="--output of clean_bench.py, one for each seed")
    parser.add_argument("--data", type=Path, default=Path("data/clean_bench"), help="store of the bench")
    options = parser.parse_args()
    task = get_task(str(HERE / "task.yaml"))
    text = table(options.folders, task, options.data)
    print(text)
    (RESULTS / "clean_bench_seeds.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
