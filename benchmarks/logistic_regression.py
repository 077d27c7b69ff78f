"""What does logistic regression reach on a store's own features? The floor that an adapter must clear.

Every utterance becomes one vector: the mean and the standard deviation over time of each modality's features, scaled on the
training split. The penalty is chosen by the validation split, or by cross-validation over training dialogues where there is
none. Classes of a classification task; of a score, whether it is positive (0 counts as positive).
"""

from __future__ import annotations

import numpy as np
from common import options, report
from sklearn.feature_selection import VarianceThreshold
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV
from sklearn.metrics import accuracy_score, f1_score
from sklearn.model_selection import GroupKFold, PredefinedSplit
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from llm_mer.data.store import UtteranceStore
from llm_mer.prompting.tasks import Task, get_task

MODALITIES = ("text", "audio", "vision")
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
RESAMPLES = 1000


class Split:
    """Vectors by modality, labels and dialogues of one split and language."""

    def __init__(self, store: UtteranceStore, split: str, language: str, task: Task, sizes: dict[str, int]) -> None:
        rows: dict[str, list[np.ndarray]] = {name: [] for name in sizes}
        self.labels: list[str] = []
        self.groups: list[str] = []
        for utterance in store.split(split):
            target = utterance.labels.get(task.target)
            if target is None or utterance.language != language:
                continue
            for name, size in sizes.items():
                values = getattr(utterance, f"{name}_features")
                known = values is not None and len(values)
                moments = (values.mean(axis=0), values.std(axis=0)) if known else (np.zeros(size), np.zeros(size))
                rows[name].append(np.concatenate(moments))
            regression = task.kind == "regression"
            self.labels.append(("positive" if float(target) >= 0 else "negative") if regression else str(target))
            self.groups.append(utterance.dialogue_id or utterance.id)
        self.vectors = {name: np.array(values) for name, values in rows.items()}

    def matrix(self, modalities: tuple[str, ...]) -> np.ndarray:
        return np.concatenate([self.vectors[name] for name in modalities], axis=1)


def scaling() -> Pipeline:
    """Leaves out what never changes, as the deviation of utterance-level features."""
    return make_pipeline(VarianceThreshold(), StandardScaler())


def fit(train: Split, valid: Split | None, modalities: tuple[str, ...]) -> object:
    """The classifier, its penalty chosen without the test split."""
    scaler = scaling().fit(train.matrix(modalities))
    inputs, labels = scaler.transform(train.matrix(modalities)), train.labels
    if valid is not None and valid.labels:
        own, held = len(labels), len(valid.labels)
        inputs = np.concatenate([inputs, scaler.transform(valid.matrix(modalities))])
        folds = list(PredefinedSplit([-1] * own + [0] * held).split())
        labels = [*labels, *valid.labels]
    else:
        folds = list(GroupKFold(5).split(inputs, labels, train.groups))
    search = LogisticRegressionCV(
        Cs=STRENGTHS, cv=folds, max_iter=300, scoring="accuracy", refit=False, l1_ratios=(0.0,), use_legacy_attributes=False
    )
    strength = float(np.ravel(search.fit(inputs, labels).C_)[0])
    return make_pipeline(scaling(), LogisticRegression(C=strength, max_iter=1000)).fit(
        train.matrix(modalities), train.labels
    )


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--data", nargs="+", required=True, help="stores, by `llm-mer extract` or `prepare`")
    parser.add_argument("--task", required=True, help="built-in task or YAML file")
    parser.add_argument("--train_split", default="train", help="CPED's published files here have no train split")
    arguments = parser.parse_args()
    task, table = get_task(arguments.task), []
    for folder in arguments.data:
        store = UtteranceStore.open(folder)
        held_out = set(store.info.counts) - {arguments.train_split}
        sizes = {name: store.info.feature_sizes[name] for name in MODALITIES if name in store.info.feature_sizes}
        chosen = [(name,) for name in sizes] + ([tuple(sizes)] if len(sizes) > 1 else [])
        for language in ("en", "zh"):
            train = Split(store, arguments.train_split, language, task, sizes)
            valid = Split(store, "valid", language, task, sizes) if "valid" in held_out else None
            test = Split(store, "test", language, task, sizes)
            if not test.labels:
                continue
            truth = np.array(test.labels)
            majority = max(np.unique(truth, return_counts=True)[1]) / len(truth)
            for modalities in chosen:
                answers = fit(train, valid, modalities).predict(test.matrix(modalities))  # type: ignore[attr-defined]
                rows = np.random.default_rng(0).integers(0, len(truth), (RESAMPLES, len(truth)))
                low, high = np.quantile((answers == truth)[rows].mean(axis=1), [0.025, 0.975])
                score = f"{accuracy_score(truth, answers):.3f} [{low:.3f}, {high:.3f}]"
                f1 = f"{f1_score(truth, answers, average='weighted'):.3f}"
                table.append([folder, language, " + ".join(modalities), len(truth), f"{majority:.3f}", score, f1])
                print(*table[-1], flush=True)
    head = ["store", "language", "modalities", "n", "majority", "accuracy", "weighted F1"]
    notes = "In brackets 95 % bootstrap intervals over utterances."
    report(f"logistic_regression_{task.name}", __doc__, head, table, notes, arguments.quick)


if __name__ == "__main__":
    main()
