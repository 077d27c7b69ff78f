"""Which distance tells features that are unlike the training data from new ones that are like them?

Each measure is fitted on a training split, its threshold on the validation split, and asked about utterances of the test
split (which should not be far: false alarms) and about others (which should). All work on the mean over time of each
feature, standardised by the training split: the root mean square of robust z-scores, the Mahalanobis distance with Ledoit
and Wolf's covariance, the same with its widest directions alone (what checkpoints carry), and the distance to the nearest
training utterance.

Sides: the quickstart's corpus (espeak's voices and drawn faces) against real voices (RAVDESS), and the reverse; RAVDESS's
actors 11 and 12 with white noise at 0 dB, through a telephone band (300 to 3400 Hz), at a tenth of the volume; MOSI with its
features permuted::

    python benchmarks/training_distance.py --quickstart runs/quickstart/features --ravdess ../shared/data/ravdess12 \
      --mosi data/mosi
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from common import report
from scipy.signal import butter, sosfiltfilt
from sklearn.covariance import LedoitWolf
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import NearestNeighbors

from llm_mer.data.schema import Utterance
from llm_mer.data.sources import read_source
from llm_mer.data.store import FEATURE_COLUMNS, UtteranceStore
from llm_mer.data.training_range import DIRECTIONS, TrainingRange
from llm_mer.features.acoustic import Egemaps
from llm_mer.features.media import SAMPLE_RATE, read_audio

Measure = Callable[[np.ndarray], Callable[[np.ndarray], np.ndarray]]
"""Training utterances ``(n, D)`` to a function from utterances ``(m, D)`` to distances ``(m,)``."""
ALARMS = 0.01
"""Share of the validation split that a threshold leaves beyond it."""


def robust_z(training: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """``√(1/D Σ_d ((x_d − median_d) / (1.4826 MAD_d))²)``."""
    median = np.median(training, axis=0)
    deviation = 1.4826 * np.median(np.abs(training - median), axis=0)
    scale = np.where(deviation > 1e-6, deviation, np.maximum(training.std(axis=0), 1e-6))
    return lambda x: np.sqrt((((x - median) / scale) ** 2).mean(axis=1))


def mahalanobis(training: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """``√(1/D (x − μ)ᵀ Σ⁻¹ (x − μ))``."""
    fitted = LedoitWolf().fit(training)
    return lambda x: np.sqrt(fitted.mahalanobis(x) / training.shape[1])


def nearest(training: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """``min_u ‖x − x_u‖ / √D``."""
    index = NearestNeighbors(n_neighbors=1).fit(training)
    return lambda x: index.kneighbors(x)[0][:, 0] / np.sqrt(training.shape[1])


def shipped(training: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """What checkpoints carry: Mahalanobis with the widest directions, the others' variance averaged."""
    found = TrainingRange.fit(training, training)
    assert found is not None
    return lambda x: np.array([found.distance(row[None]) for row in x]) * found.limit


MEASURES: dict[str, Measure] = {
    "robust z": robust_z,
    "Mahalanobis": mahalanobis,
    f"Mahalanobis, {DIRECTIONS} directions": shipped,
    "nearest": nearest,
}


def means(utterances: Sequence[Utterance], modality: str) -> np.ndarray:
    """``(n, D)`` means over time."""
    found = [getattr(u, FEATURE_COLUMNS[modality]) for u in utterances]
    return np.array([f.astype(np.float64).mean(axis=0) for f in found if f is not None])


def telephone(samples: np.ndarray) -> np.ndarray:
    """300 to 3400 Hz, fourth order."""
    return np.asarray(
        sosfiltfilt(butter(4, [300, 3400], "bandpass", fs=SAMPLE_RATE, output="sos"), samples), dtype=np.float32
    )


def noisy(samples: np.ndarray) -> np.ndarray:
    """White noise as strong as the sound."""
    noise = np.random.default_rng(0).standard_normal(len(samples)) * np.sqrt(np.mean(np.square(samples, dtype=np.float64)))
    return (samples + noise).astype(np.float32)


SOUNDS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "white noise, 0 dB": noisy,
    "telephone band": telephone,
    "a tenth of the volume": lambda samples: samples * np.float32(0.1),
}


def voices(folder: Path) -> dict[str, np.ndarray]:
    """RAVDESS's clips by split, and those of the test actors damaged: ``(n, 25)`` each."""
    extractor = Egemaps(12.5)
    clips: dict[str, list[str]] = {}
    for utterance in read_source("ravdess", folder):
        clips.setdefault(utterance.split, []).append(str(utterance.audio))

    def features(paths: Sequence[str], change: Callable[[np.ndarray], np.ndarray] = lambda samples: samples) -> np.ndarray:
        return np.array([extractor(change(read_audio(path))).astype(np.float64).mean(axis=0) for path in paths])

    found = {split: features(paths) for split, paths in clips.items()}
    return found | {name: features(clips["test"], change) for name, change in SOUNDS.items()}


def rows(
    title: str, training: np.ndarray, valid: np.ndarray, test: np.ndarray, others: dict[str, np.ndarray]
) -> list[list[str]]:
    """Each measure and each of the others: threshold, false alarms on the test split, what is beyond, AUROC."""
    mean, deviation = training.mean(axis=0), training.std(axis=0)
    scale = np.where(deviation > 1e-8, deviation, np.inf)
    found = []
    for name, measure in MEASURES.items():
        distance = measure((training - mean) / scale)
        held, own = (distance((x - mean) / scale) for x in (valid, test))
        threshold = float(np.quantile(held, 1 - ALARMS))
        for other, x in others.items():
            far = distance((x - mean) / scale)
            area = roc_auc_score([0] * len(own) + [1] * len(far), np.concatenate([own, far]))
            alarms = f"{(own > threshold).mean():.3f} (n={len(own)})"
            beyond = f"{(far > threshold).mean():.3f} (n={len(far)})"
            found.append([title, other, name, f"{threshold:.2f}", f"{np.median(far):.2f}", alarms, beyond, f"{area:.3f}"])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quickstart", type=Path, required=True, help="store of the quickstart's features")
    parser.add_argument("--ravdess", type=Path, required=True, help="folder of RAVDESS's twelve actors")
    parser.add_argument("--mosi", type=Path, required=True, help="store of MOSI")
    given = parser.parse_args()
    drawn, mosi = UtteranceStore.open(given.quickstart), UtteranceStore.open(given.mosi)
    real = voices(given.ravdess)
    own = {split: means(list(drawn.split(split)), "audio") for split in ("train", "valid", "test")}
    table = rows("quickstart, audio", *own.values(), {"RAVDESS's voices": np.concatenate([real["train"], real["test"]])})
    splits = [real[split] for split in ("train", "valid", "test")]
    table += rows("RAVDESS, audio", *splits, {"quickstart's voices": own["test"], **{name: real[name] for name in SOUNDS}})
    pictures = {split: means(list(drawn.split(split)), "vision") for split in ("train", "valid", "test")}
    generator = np.random.default_rng(0)
    table += rows(
        "quickstart, vision", *pictures.values(), {"its features permuted": generator.permuted(pictures["test"], axis=1)}
    )
    for modality in ("text", "audio", "vision"):
        training = means(list(mosi.split("train")), modality)
        order = generator.permutation(len(training))
        cut = len(order) // 5
        test = means(list(mosi.split("test")), modality)
        moved = {"its features permuted": generator.permuted(test, axis=1), "twice as large": 2 * test}
        table += rows(f"MOSI, {modality}", training[order[cut:]], training[order[:cut]], test, moved)
    head = (
        "trained on",
        "asked about",
        "measure",
        "threshold",
        "their median",
        "false alarms on own test",
        "beyond",
        "AUROC",
    )
    notes = (
        f"Threshold: the {1 - ALARMS:.0%} quantile of the validation split (of MOSI, which has none, a fifth of the "
        "training split). AUROC: own test split against the others."
    )
    report("training_distance", __doc__.split("::")[0], head, table, notes, quick=False)


if __name__ == "__main__":
    main()
