"""What ``benchmarks/clean_bench.py`` computes from finished evaluations."""

import argparse
import json
from pathlib import Path

import numpy as np
import pytest

from llm_mer.data.schema import Utterance
from llm_mer.data.store import write_store
from llm_mer.evaluation.clusters import Clusters
from llm_mer.evaluation.resampling import mean_interval

LABELS = ("anger", "joy")


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> object:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    import clean_bench

    return clean_bench


def identifier(split: str, row: int) -> str:
    return f"{split}-{row:05d}.{split}-dia{row}-utt0.03-01-05-01-01-01-{row % 4:02d}"


def evaluation(folder: Path, split: str, truth: list[str], answers: dict[str, list[float]]) -> None:
    """Predictions by condition, each the probability of anger of every row."""
    output = folder / f"eval_{split}"
    output.mkdir(parents=True)
    (output / "evaluation.json").write_text("{}")
    with (output / "predictions.jsonl").open("w") as stream:
        for condition, probabilities in answers.items():
            for row, (right, p) in enumerate(zip(truth, probabilities, strict=True)):
                entry = {
                    "condition": condition,
                    "id": identifier(split, row),
                    "truth": right,
                    "value": LABELS[int(p < 0.5)],
                    "head_value": "anger",
                    "probabilities": {"anger": p, "joy": 1 - p},
                    "tags": ["agree" if row % 2 else "conflict"],
                }
                stream.write(json.dumps(entry) + "\n")


def test_the_interval_draws_whole_clips(bench: object) -> None:
    rng = np.random.default_rng(1)
    values = np.repeat(rng.random(40) < 0.5, 10).astype(float)  # ten equal rows a clip are no more evidence than one
    clips = [str(i) for i in range(40) for _ in range(10)]
    low, high = mean_interval(values, Clusters.named("clip", clips), 4000, 0)
    single = mean_interval(values[::10], Clusters.named("clip", clips[::10]), 4000, 0)
    assert (low, high) == pytest.approx(single)
    sigma = np.sqrt(values.mean() * (1 - values.mean()) / 40)
    assert high - low == pytest.approx(2 * 1.96 * sigma, rel=0.15)


def test_the_table_has_each_share(bench: object, tmp_path: Path) -> None:
    truth = ["anger", "joy"] * 4
    rng = np.random.default_rng(0)
    utterances = []
    for split in ("train", "valid", "test"):
        for row in range(8):
            sign = 1.0 if truth[row] == "anger" else -1.0
            features = (sign + 0.01 * rng.standard_normal((3, 2))).astype(np.float32)
            labels: dict[str, str | float] = {"emotion": truth[row]}
            utterances.append(
                Utterance(
                    identifier(split, row),
                    split,
                    "en",
                    "words",
                    speaker=f"actor-{row // 4}",
                    audio_features=features,
                    labels=labels,
                )
            )
    store = write_store(utterances, tmp_path / "store")
    unsure, right = [0.50001] * 8, [0.9 if t == "anger" else 0.1 for t in truth]
    for name, answers in (
        ("words", {"as is": unsure}),
        ("default", {"as is": right, "pooled": unsure, "audio shuffled": [1 - p for p in right]}),
    ):
        for split in ("valid", "test"):
            evaluation(tmp_path / "runs" / name, split, truth, answers)
    options = argparse.Namespace(output=tmp_path / "runs")
    rows = {
        line.split("|")[1].strip(): [c.strip() for c in line.split("|")[2:-1]]
        for line in bench.table(options, store).splitlines()
        if line
    }
    assert rows["logistic regression on the voice"][1].startswith("1.000 ")
    assert rows["logistic regression on the voice, normalised by speaker"][1].startswith("1.000 ")
    assert rows["product of that and `words`"][1].startswith("1.000 ")  # the sure voice outweighs unsure words
    assert rows["`words`"][:4] == ["0.500", "0.500 [0.000, 1.000]", "0.000", "1.000"]
    assert rows["`words`"][6] == "1.000"
    lines = bench.table(options, store).splitlines()
    paired = [line for line in lines if line.startswith("| `default` |")]
    whole = [cell.strip() for cell in paired[0].split("|")[2:-1]]
    assert (whole[0], whole[1][:5], *whole[4:]) == ("1.000", "1.000", "1.000", "", "0.500")
    assert paired[1].startswith("| `default` | +0.500 ")
    beside = {
        name: [line for line in lines if line.startswith(f"| `default`, {name} |")]
        for name in ("pooled", "the adapter's own head")
    }
    assert beside["pooled"][0].startswith("| `default`, pooled | 0.500 | 0.500 ")
    assert beside["pooled"][1].startswith("| `default`, pooled | +0.000 ")
    assert [line[:50] for line in beside["the adapter's own head"]] == ["| `default`, the adapter's own head | 0.500 | 0.50"]


def test_over_seeds_the_spread_of_training_widens_the_interval(bench: object, tmp_path: Path) -> None:
    import clean_bench_seeds

    from llm_mer.prompting.tasks import get_task

    truth = ["anger", "joy"] * 20
    rng = np.random.default_rng(3)
    chance = {  # of a right answer, by run and seed
        "words": (0.5, 0.5, 0.5),
        "default": (0.9, 0.7, 0.8),
    }
    right = {name: [rng.random(len(truth)) < p for p in seeds] for name, seeds in chance.items()}
    folders = [tmp_path / str(seed) for seed in range(3)]
    for name, seeds in right.items():
        for folder, hits in zip(folders, seeds, strict=True):
            answers = [0.9 if (t == "anger") == bool(h) else 0.1 for t, h in zip(truth, hits, strict=True)]
            for split in ("valid", "test"):
                evaluation(folder / name, split, truth, {"as is": answers})
    task = get_task(str(clean_bench_seeds.HERE / "task.yaml"))
    found, clips, ways = clean_bench_seeds.collect(folders)
    assert (found.tolist(), len(set(clips))) == (truth, 4)
    scored = {way.name: way for way in ways if way.name.endswith("scored")}
    assert list(scored) == ["`words`, scored", "`default`, scored"]
    shares = [float(hits.mean()) for hits in right["default"]]
    assert scored["`default`, scored"].validation == pytest.approx(shares)
    clusters = Clusters.named("clip", clips)
    text = clean_bench_seeds.estimate(task, found, clusters, scored["`default`, scored"], scored["`words`, scored"])
    difference = np.mean(shares) - np.mean([hits.mean() for hits in right["words"]])
    assert text.startswith(f"{difference:+.3f} [")
    single = clean_bench_seeds.Way("one", scored["`default`, scored"].test[:1], shares[:1])

    def width(way: object) -> float:
        low, high = clean_bench_seeds.estimate(task, found, clusters, way).split("[")[1].rstrip("]").split(", ")
        return float(high) - float(low)

    same = clean_bench_seeds.Way("thrice the same", single.test * 3, shares[:1] * 3)
    assert width(same) == pytest.approx(width(single), abs=2e-3)  # the same answers thrice are no more evidence than once
    assert width(scored["`default`, scored"]) > width(single)
