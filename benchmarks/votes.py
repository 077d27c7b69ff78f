"""Does training on annotators' votes beat training on the label most of them named? EmoS, English and Chinese.

Two learners, each trained in the same way on the distribution of the votes and on the majority label, whose ties are left
out: softmax regression on hashed character n-grams, one a language, its penalty chosen on validation by the cross-entropy
against votes; and a small Llama with random weights that reads the same n-grams through the pseudo tokens of a gated
projector (LoRA), both languages in one model, equally many steps: its scored answers (`objective: answers`) and its
read-out. Each dialogue is in one split as a whole. What is finished is kept, so the script goes on after a stop. Before it:

    llm-mer extract --manifest emos:../shared/data/emos --audio none --vision none --text ngrams --output data/emos
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from common import options, report
from scipy.optimize import minimize_scalar
from scipy.special import entr, log_softmax

from llm_mer.evaluation.clusters import Clusters
from llm_mer.evaluation.resampling import correlation, expand, percentile_interval, resample, training_noise
from llm_mer.evaluation.vote_scores import (
    AGREEMENT,
    CROSS_ENTROPY,
    JS_DIVERGENCE,
    MAJORITY_ACCURACY,
    VoteTable,
    annotator_scores,
    best_possible,
    utterance_scores,
)
from llm_mer.prompting.tasks import get_task

TASK = get_task(str(Path(__file__).resolve().parent / "emos" / "task.yaml"))
LANGUAGES = ("en", "zh")
VOTES, MAJORITY = "votes", "majority"
METRICS = (CROSS_ENTROPY, AGREEMENT, MAJORITY_ACCURACY, JS_DIVERGENCE)
PENALTIES = (1e-2, 3e-3, 1e-3, 3e-4)
RESAMPLES, SEED = 2000, 0


@dataclass
class Part:
    """One split and language: ``(N, 1024)`` features, votes, ids, and the dialogue of each utterance."""

    features: np.ndarray
    votes: VoteTable
    ids: list[str]
    dialogues: list[str]

    @classmethod
    def read(cls, store: Path, split: str, language: str) -> Part:
        from llm_mer.data.dataset import MerDataset
        from llm_mer.data.store import UtteranceStore

        dataset = MerDataset(UtteranceStore.open(store).split(split), [TASK], languages=[language])
        asked = [(dataset.utterance(q.row), q.votes) for q in dataset.questions if q.votes is not None]
        counts = np.array([votes.counts for _, votes in asked], dtype=np.float64)
        annotators = np.array([votes.annotators for _, votes in asked], dtype=np.float64)
        features = np.concatenate([u.text_features for u, _ in asked if u.text_features is not None])
        return cls(
            features, VoteTable(counts, annotators, False), [u.id for u, _ in asked], [str(u.dialogue_id) for u, _ in asked]
        )

    def targets(self, arm: str) -> tuple[np.ndarray, np.ndarray]:
        """Features and target distributions of what an arm trains on."""
        if arm == VOTES:
            return self.features, self.votes.shares
        return self.features[self.votes.clear], self.votes.first[self.votes.clear].astype(np.float64)


def softmax_regression(features: np.ndarray, targets: np.ndarray, penalty: float) -> np.ndarray:
    """Weights ``(D + 1, C)`` with the least mean cross-entropy and ``penalty / 2 · ‖W‖²``, the bias free."""
    x = torch.from_numpy(np.c_[features, np.ones(len(features))]).double()
    y = torch.from_numpy(targets)
    weights = torch.zeros(x.shape[1], y.shape[1], dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([weights], max_iter=200, history_size=10, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        loss = -(y * torch.log_softmax(x @ weights, dim=1)).sum(1).mean() + penalty / 2 * (weights[:-1] ** 2).sum()
        loss.backward()
        return loss

    optimiser.step(closure)
    return weights.detach().numpy()


def regression(
    parts: dict[tuple[str, str], Part], arm: str, kept: Path, penalties: Sequence[float]
) -> dict[tuple[str, str], np.ndarray]:
    """Log-probabilities of validation and test by split and language, once."""
    names = [(split, language) for split in ("valid", "test") for language in LANGUAGES]
    if kept.is_file():
        with np.load(kept) as stored:
            return {name: stored["-".join(name)] for name in names}
    found: dict[tuple[str, str], np.ndarray] = {}
    for language in LANGUAGES:
        best = np.inf
        for penalty in penalties:
            weights = softmax_regression(*parts["train", language].targets(arm), penalty)
            answers = {
                split: log_softmax(
                    np.c_[parts[split, language].features, np.ones(len(parts[split, language].ids))] @ weights, axis=1
                )
                for split in ("valid", "test")
            }
            score = utterance_scores(CROSS_ENTROPY, parts["valid", language].votes, answers["valid"]).mean()
            if score < best:
                best = score
                found.update({(split, language): value for split, value in answers.items()})
    np.savez(kept, **{"-".join(name): value for name, value in found.items()})  # type: ignore[arg-type]
    return found


def backbone(folder: Path) -> Path:
    """A random Llama, and a tokenizer that knows the labels' words."""
    from transformers import AddedToken

    from llm_mer.backbones.tiny import build_untrained_model, train_tokenizer
    from llm_mer.backbones.tiny_options import TinyBackboneConfig
    from llm_mer.backbones.tiny_text import generate_lines

    if not (folder / "config.json").is_file():
        words = [word for label in TASK.labels for word in label.words.values()]
        tokenizer = train_tokenizer([*generate_lines(0, 600), *words * 20], 1200)
        # A word a token: random weights know nothing of a word's later pieces, and would rate words by their length.
        tokenizer.add_tokens([AddedToken(word, lstrip=True, normalized=False) for word in words])
        torch.manual_seed(0)
        model = build_untrained_model(TinyBackboneConfig(hidden_size=64, layers=2, heads=4), len(tokenizer))
        tokenizer.save_pretrained(folder)
        model.save_pretrained(folder)
    return folder


def train(run: Path, base: Path, store: Path, arm: str, seed: int, steps: int) -> None:
    """Train a run and write its predictions of validation and test, once."""
    from llm_mer.cli.train import finetune
    from llm_mer.evaluation.evaluate import evaluate
    from llm_mer.evaluation.options import EvaluateConfig
    from llm_mer.evaluation.rows import save_predictions

    if not (run / "config.json").is_file():
        chosen = {
            "data": store, "backbone": base, "output_dir": run, "tasks": Path(__file__).parent / "emos" / "task.yaml",
            "prompts": "notext", "adapter": "gated_projector", "text_source": "features", "hidden_size": 128,
            "num_pseudo_tokens": 4, "dropout": 0.1, "lora_r": 8, "objective": "answers", "read_out": "true",
            "vote_targets": "distribution" if arm == VOTES else "majority", "max_steps": steps,
            "per_device_train_batch_size": 32, "learning_rate": "1e-2", "eval_strategy": "no", "save_strategy": "no",
            "load_best_model_at_end": "false", "logging_steps": 50, "seed": seed, "use_cpu": "true", "disable_tqdm": "true",
            "overwrite_output_dir": "true",
        }  # fmt: skip
        finetune([part for name, value in chosen.items() for part in (f"--{name}", str(value))])
    for split in ("valid", "test"):
        path = run / f"{split}.jsonl"
        if not path.is_file():
            config = EvaluateConfig(str(run), [str(store)], split=split, resamples=1, batch_size=64)
            save_predictions(path, evaluate(config, progress=False)[1])


def answers_of(run: Path, parts: dict[tuple[str, str], Part], read_out: bool) -> dict[tuple[str, str], np.ndarray]:
    """Log-probabilities of a run in the order of the parts."""
    from llm_mer.evaluation.conditions import AS_IS
    from llm_mer.evaluation.rows import load_predictions

    found = {}
    for split in ("valid", "test"):
        given = {p.id: p for p in load_predictions(run / f"{split}.jsonl")[AS_IS]}
        for language in LANGUAGES:
            chosen = [given[name] for name in parts[split, language].ids]
            rows = [p.read_out_log_probabilities if read_out else p.log_probabilities for p in chosen]
            found[split, language] = log_softmax(np.array(rows, dtype=np.float64), axis=1)
    return found


def tempered(valid: np.ndarray, votes: VoteTable, test: np.ndarray) -> np.ndarray:
    """Test answers at the temperature with the least cross-entropy against the votes of validation."""

    def loss(log_t: float) -> float:
        return float(utterance_scores(CROSS_ENTROPY, votes, log_softmax(valid / np.exp(log_t), axis=1)).mean())

    found = minimize_scalar(loss, bounds=(-2.3, 4.6), method="bounded")
    return np.asarray(log_softmax(test / np.exp(found.x), axis=1))


def spread(values: Sequence[np.ndarray], clusters: Clusters) -> np.ndarray:
    """Resampled means over seeds ``[(N,)]``: whole dialogues are drawn, and the seeds' own spread is added."""
    drawn = clusters.draw(RESAMPLES, SEED)
    sums, sizes = (np.bincount(clusters.index, w, clusters.count) for w in (np.mean(values, axis=0), None))
    points = [float(v.mean()) for v in values]
    return np.asarray(
        expand(drawn @ sums / (drawn @ sizes), clusters.count)
        + training_noise(points, RESAMPLES, np.random.default_rng([SEED, 1]))
    )


def cell(values: Sequence[np.ndarray], dialogues: Sequence[str], signed: bool = False) -> str:
    """Mean and 95 % interval of utterances' values, seed by seed; NaN is left out."""
    kept = ~np.isnan(values[0])
    clusters = Clusters.named("dialogue", [d for d, k in zip(dialogues, kept, strict=True) if k])
    chosen, sign = [v[kept] for v in values], "+" if signed else ""
    low, high = percentile_interval(spread(chosen, clusters))
    return f"{np.mean(chosen):{sign}.3f} [{low:{sign}.3f}, {high:{sign}.3f}]"


def entropy_cell(answers: Sequence[np.ndarray], part: Part) -> str:
    """Correlation of the entropies of votes and of the mean answers over seeds, with its interval."""
    own = np.mean([entr(np.exp(row)).sum(axis=1) for row in answers], axis=0)
    true, clusters = entr(part.votes.shares).sum(axis=1), Clusters.named("dialogue", part.dialogues)
    low, high = percentile_interval(resample(correlation, true, own, RESAMPLES, SEED, clusters))
    return f"{float(correlation(true[None], own[None])[0]):.3f} [{low:.3f}, {high:.3f}]"


Answers = list[dict[tuple[str, str], np.ndarray]]


def rows_of(name: str, language: str, part: Part, valid: Part, arms: dict[str, Answers]) -> list[list[str]]:
    """Both arms of a learner and their difference, in one language."""
    table, scores = [], {}
    for arm, runs in arms.items():
        answers = [run["test", language] for run in runs]
        mild = [tempered(run["valid", language], valid.votes, run["test", language]) for run in runs]
        values = {m: [utterance_scores(m, part.votes, a) for a in answers] for m in METRICS}
        values["tempered"] = [utterance_scores(CROSS_ENTROPY, part.votes, a) for a in mild]
        scores[arm] = values
        cells = [cell(values[m], part.dialogues) for m in (CROSS_ENTROPY, "tempered", *METRICS[1:])]
        table.append([language, f"{name}, on {arm}", *cells, entropy_cell(answers, part)])
    if len(arms) == 2:
        cells = []
        for m in (CROSS_ENTROPY, "tempered", *METRICS[1:]):
            pairs = zip(scores[VOTES][m], scores[MAJORITY][m], strict=True)
            cells.append(cell([a - b for a, b in pairs], part.dialogues, signed=True))
        table.append([language, f"{name}: votes − majority", *cells, ""])
    return table


def reference_rows(language: str, part: Part, training: Part) -> list[list[str]]:
    """The training votes' distribution, annotators with one left out, and the votes themselves."""
    counts = training.votes.shares.sum(axis=0) + 0.5
    prior = counts / counts.sum()
    constant = np.broadcast_to(np.log(prior), part.votes.counts.shape)
    trivial = {m: utterance_scores(m, part.votes, constant) for m in METRICS}
    people = {m: annotator_scores(m, part.votes, prior) for m in METRICS}
    first = [trivial[m] for m in (CROSS_ENTROPY, CROSS_ENTROPY, *METRICS[1:])]
    rows = [[language, "training votes' distribution", *(cell([v], part.dialogues) for v in first), "–"]]
    second = [None if people[m] is None else people[m] for m in METRICS]
    shown = ["–" if v is None else cell([v], part.dialogues) for v in second]
    rows.append([language, "annotators, one left out", shown[0], "–", *shown[1:], "–"])
    best = [f"{best_possible(m, part.votes).mean():.3f}" for m in METRICS]
    rows.append([language, "the votes themselves", best[0], "–", *best[1:], "1"])
    return rows


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--data", type=Path, default=Path("data/emos"), help="the store that `llm-mer extract` wrote")
    parser.add_argument("--runs", type=Path, default=Path("runs/votes"), help="where runs are kept")
    parser.add_argument("--seeds", type=int, nargs="*", default=[1111, 2222, 3333], help="of the language model's runs")
    parser.add_argument("--steps", type=int, default=400, help="of 32 questions, of each run")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    seeds, steps = ([1111], 3) if arguments.quick else (arguments.seeds, arguments.steps)
    runs = arguments.runs / ("quick" if arguments.quick else f"steps-{steps}")
    runs.mkdir(parents=True, exist_ok=True)
    parts = {
        (split, language): Part.read(arguments.data, split, language)
        for split in ("train", "valid", "test")
        for language in LANGUAGES
    }
    penalties = PENALTIES[:1] if arguments.quick else PENALTIES
    learners: dict[str, dict[str, Answers]] = {
        "regression": {arm: [regression(parts, arm, runs / f"regression-{arm}.npz", penalties)] for arm in (VOTES, MAJORITY)}
    }
    if seeds:
        base = backbone(runs / "backbone")
        for seed in seeds:
            for arm in (VOTES, MAJORITY):
                train(runs / f"{arm}-{seed}", base, arguments.data, arm, seed, steps)
        for name, read_out in (("scored answers", False), ("read-out", True)):
            learners[name] = {
                arm: [answers_of(runs / f"{arm}-{seed}", parts, read_out) for seed in seeds] for arm in (VOTES, MAJORITY)
            }
    table = []
    for language in LANGUAGES:
        test, valid = parts["test", language], parts["valid", language]
        table += reference_rows(language, test, parts["train", language])
        for name, arms in learners.items():
            table += rows_of(name, language, test, valid, arms)
    sizes = {language: parts["test", language] for language in LANGUAGES}
    told = "; ".join(
        f"{language} n = {len(p.ids)} in {len(set(p.dialogues))} dialogues, {int(p.votes.clear.sum())} of them with a "
        "majority"
        for language, p in sizes.items()
    )
    notes = (
        f"Test: {told}. {len(seeds)} seeds of {steps} steps of the language model; intervals are 95 %, whole dialogues "
        "drawn, with the seeds' own spread. Cross-entropy and divergence in nats, lower is better; at T: at the temperature "
        "with the least cross-entropy on validation's votes. Agreement: the share of annotators who named the answer. Of "
        "three annotators who name several labels the counts do not tell an accuracy against the majority with one left out."
    )
    head = ["", "system", "cross-entropy", "at T", "agreement", "majority accuracy", "JS divergence", "entropies' r"]
    report("votes", __doc__, head, table, notes, arguments.quick)


if __name__ == "__main__":
    main()
