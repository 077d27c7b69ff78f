"""Which MOSI videos were the features fitted on? And what does logistic regression reach on the others?

The features of ``shared/data/mosi`` are outputs of networks trained on sentiment. On the videos they were trained on a
linear classifier separates positive from negative almost perfectly; on the rest it cannot. This script finds the rest
from the features alone: fit a classifier, call the 31 videos (declare-lab's number) with the smallest mean margin unseen,
fit again on the others, until nothing changes. It then prints how the found videos agree with the list in
``llm_mer/data/sources/mosi.py``, and the logistic-regression baselines on both splits.

    python benchmarks/mosi_split.py ../shared/data/mosi
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from llm_mer.data.schema import Utterance
from llm_mer.data.sources.mosi import DECLARE_LAB_TEST, read_mosi

UNSEEN_VIDEOS = 31
MODALITIES = ("text", "audio", "vision")


def classifier(strength: float = 0.01) -> object:
    """Standardised logistic regression."""
    return make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=1000))


def matrix(utterances: list[Utterance], modalities: tuple[str, ...]) -> np.ndarray:
    """``(N, sum of D_m)``."""
    return np.stack([np.concatenate([getattr(u, f"{m}_features")[0] for m in modalities]) for u in utterances])


def find_unseen(features: np.ndarray, positive: np.ndarray, videos: np.ndarray) -> set[str]:
    """The 31 videos whose sentences a classifier fitted on the others separates worst."""
    names = np.unique(videos)
    unseen: set[str] = set()
    for _ in range(20):
        seen = ~np.isin(videos, sorted(unseen))
        model = classifier().fit(features[seen], positive[seen])  # type: ignore[attr-defined]
        margin = model.decision_function(features) * np.where(positive, 1, -1)
        order = names[np.argsort([margin[videos == name].mean() for name in names])]
        found = {str(name) for name in order[:UNSEEN_VIDEOS]}
        if found == unseen:
            break
        unseen = found
    return unseen


def main(folder: Path) -> None:
    """Print both findings."""
    utterances = list(read_mosi(folder, languages=("en",), split="official"))
    videos = np.array([u.dialogue_id for u in utterances])
    positive = np.array([u.labels["polarity"] == "positive" for u in utterances])
    found = find_unseen(matrix(utterances, MODALITIES), positive, videos)
    listed = set(DECLARE_LAB_TEST)
    print(f"found {len(found)} unseen videos with {int(np.isin(videos, sorted(found)).sum())} sentences; ", end="")
    print(f"{len(found & listed)} of them are in the list of {len(listed)} (752 sentences)\n")
    official = np.array([u.split for u in utterances])
    splits = {
        "official split of index.csv (leaks)": (official != "test", official == "test"),
        "videos the features were not fitted on": (~np.isin(videos, sorted(listed)), np.isin(videos, sorted(listed))),
    }
    print("| split | train / test | text | audio | vision | all | majority |\n|---|---|---|---|---|---|---|")
    for name, (train, test) in splits.items():
        cells = []
        for modalities in (("text",), ("audio",), ("vision",), MODALITIES):
            features = matrix(utterances, modalities)
            model = classifier().fit(features[train], positive[train])  # type: ignore[attr-defined]
            cells.append(f"{model.score(features[test], positive[test]):.3f}")
        majority = max(positive[test].mean(), 1 - positive[test].mean())
        print(f"| {name} | {train.sum()} / {test.sum()} | {' | '.join(cells)} | {majority:.3f} |")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "../shared/data/mosi"))
