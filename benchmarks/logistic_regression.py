"""What does logistic regression reach on a store's own features? The floor that an adapter must clear.

Every utterance becomes one vector: the mean and the standard deviation over time of each modality's features, scaled on the
training split. The penalty is chosen by the validation split, or by cross-validation over training dialogues where there is
none. Classes of a classification task; of a score, whether it is positive (0 counts as positive). With ``--folds`` each fold
is trained and tested, and the answers of all are pooled.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from common import options, report
from sklearn.feature_selection import VarianceThreshold
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV
from sklearn.model_selection import GroupKFold, PredefinedSplit
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from llm_mer.data.folds import Folds
from llm_mer.data.reading import read_utterances
from llm_mer.data.schema import Utterance
from llm_mer.evaluation.clusters import Clusters
from llm_mer.evaluation.resampling import as_arrays, format_estimate, metric_intervals, statistics_of
from llm_mer.inference.prediction import Prediction
from llm_mer.prompting.tasks import Task, get_task

MODALITIES = ("text", "audio", "vision")
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
RESAMPLES = 1000


def moments(utterance: Utterance, modality: str) -> np.ndarray | None:
    """Mean and deviation over time, ``(2 · D,)``; None without the modality."""
    values = getattr(utterance, f"{modality}_features")
    return np.concatenate([values.mean(axis=0), values.std(axis=0)]) if values is not None and len(values) else None


class Split:
    """Vectors by modality, labels and dialogues of one split and language."""

    def __init__(self, utterances: Iterable[Utterance], language: str, task: Task) -> None:
        self.asked = [u for u in utterances if u.language == language and not task.ignores(u.labels.get(task.target))]
        self.asked = [u for u in self.asked if u.labels.get(task.target) is not None]
        self.labels = [label_of(u, task) for u in self.asked]
        self.groups = [u.dialogue_id or u.speaker or u.id for u in self.asked]

    def matrix(self, modalities: Sequence[str]) -> np.ndarray:
        columns = []
        for name in modalities:
            rows = [moments(u, name) for u in self.asked]
            size = next(len(row) for row in rows if row is not None)
            columns.append(np.array([np.zeros(size) if row is None else row for row in rows]))
        return np.concatenate(columns, axis=1)


def label_of(utterance: Utterance, task: Task) -> str:
    """The class, or of a score whether it is positive."""
    value = utterance.labels[task.target]
    if task.kind == "regression":
        return "positive" if float(value) >= 0 else "negative"
    return task.label_names[task.class_index(value, utterance.id)]


def scaling() -> Pipeline:
    """Leaves out what never changes, as the deviation of utterance-level features."""
    return make_pipeline(VarianceThreshold(), StandardScaler())


def fit(train: Split, valid: Split | None, modalities: tuple[str, ...]) -> Pipeline:
    """The classifier, its penalty chosen without the test split."""
    inputs, labels = train.matrix(modalities), train.labels
    scaler = scaling().fit(inputs)
    given, folds = scaler.transform(inputs), []
    if valid is not None and valid.labels:
        given = np.concatenate([given, scaler.transform(valid.matrix(modalities))])
        folds = list(PredefinedSplit([-1] * len(labels) + [0] * len(valid.labels)).split())
        labels = [*labels, *valid.labels]
    else:
        folds = list(GroupKFold(5).split(given, labels, train.groups))
    search = LogisticRegressionCV(
        Cs=STRENGTHS, cv=folds, max_iter=300, scoring="accuracy", refit=False, l1_ratios=(0.0,), use_legacy_attributes=False
    )
    strength = float(np.ravel(search.fit(given, labels).C_)[0])
    return make_pipeline(scaling(), LogisticRegression(C=strength, max_iter=1000)).fit(inputs, train.labels)


def score(task: Task, answered: Sequence[tuple[Utterance, str, str]]) -> tuple[list[str], Clusters]:
    """Majority, accuracy and weighted F1 of ``(utterance, truth, answer)``, with intervals over dialogues or speakers."""
    task = task if task.kind == "classification" else get_task("polarity")
    clusters = Clusters.of(
        [
            Prediction(u.id, task.name, u.language, answer, dialogue_id=u.dialogue_id, speaker=u.speaker)
            for u, _, answer in answered
        ]
    )
    truth, answers = [t for _, t, _ in answered], [a for _, _, a in answered]
    intervals = metric_intervals(task, truth, answers, RESAMPLES, 0, clusters)
    true, guess = as_arrays(task, truth, answers)
    shown = [f"{max(np.unique(truth, return_counts=True)[1]) / len(truth):.3f}"]
    for name in ("accuracy", "weighted_f1"):
        shown.append(format_estimate(float(statistics_of(task)[name](true[None], guess[None])[0]), intervals[name]))
    return shown, clusters


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--data", nargs="+", required=True, help="stores, by `llm-mer extract` or `prepare`")
    parser.add_argument("--task", required=True, help="built-in task or YAML file")
    parser.add_argument("--train_split", default="train", help="CPED's published files here have no train split")
    parser.add_argument("--folds", help="file of folds, as `llm-mer compare --folds` writes")
    arguments = parser.parse_args()
    task, table = get_task(arguments.task), []
    names = [None] if arguments.folds is None else Folds.load(Path(arguments.folds)).names
    for folder in arguments.data:
        read = [read_utterances(folder, arguments.folds, name)[0] for name in names]
        found = [u for splits in read[:1] for u in splits["test"]]
        sizes = [name for name in MODALITIES if any(moments(u, name) is not None for u in found)]
        chosen = [(name,) for name in sizes] + ([tuple(sizes)] if len(sizes) > 1 else [])
        for language in sorted({u.language for u in found}):
            for modalities in chosen:
                answered = []
                for splits in read:
                    train, test = (Split(splits[s], language, task) for s in (arguments.train_split, "test"))
                    held_out = "valid" in splits and arguments.train_split != "valid"
                    valid = Split(splits["valid"], language, task) if held_out else None
                    if not test.labels:
                        continue
                    answers = fit(train, valid, modalities).predict(test.matrix(modalities))
                    answered += list(zip(test.asked, test.labels, map(str, answers), strict=True))
                if answered:
                    shown, clusters = score(task, answered)
                    where = [folder, language, " + ".join(modalities), f"{len(answered)} in {clusters}"]
                    table.append([*where, *shown])
                    print(*table[-1], flush=True)
    head = ["store", "language", "modalities", "n", "majority", "accuracy", "weighted F1"]
    notes = "In brackets 95 % bootstrap intervals over the units beside n."
    if arguments.folds is not None:
        notes += f" The answers of {len(names)} folds together."
    report(f"logistic_regression_{task.name}", __doc__, head, table, notes, arguments.quick)


if __name__ == "__main__":
    main()
