"""Class weights and logit adjustment equal their definitions, and count the training split alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from sklearn.utils.class_weight import compute_class_weight

from llm_mer.data.dataset import MerDataset
from llm_mer.data.schema import Utterance
from llm_mer.errors import UserError
from llm_mer.prompting.tasks import get_task
from llm_mer.training.answer_objectives import AnswerTargets, as_batch, question_losses, targets_from, training_losses
from llm_mer.training.class_balance import ClassBalance, class_balance
from llm_mer.training.parsing import parse_arguments
from llm_mer.training.setup import build_trainer

TASK = get_task("polarity")
TRUTHS = [0, 0, 0, 0, 1, 0, 1, 0]


def dataset(truths: list[int], task: str = "polarity") -> MerDataset:
    names = get_task(task).label_names
    utterances = [
        Utterance(f"u{i}", language="en", text="hello there", labels={task: names[truth]}) for i, truth in enumerate(truths)
    ]
    return MerDataset(utterances, [get_task(task)])


def test_balanced_weights_are_those_of_scikit_learn_and_have_mean_one() -> None:
    train = dataset(TRUTHS)
    found = class_balance(["balanced"], 0.0, train)
    assert found is not None
    expected = compute_class_weight("balanced", classes=np.arange(TASK.num_classes), y=np.array(TRUTHS))
    assert list(found.weights["polarity"]) == pytest.approx(expected)
    assert np.mean([found.weight(question) for question in train.questions]) == pytest.approx(1.0)
    assert not any(found.adjustments["polarity"])
    assert class_balance([], 0.0, train) is None


def test_the_loss_is_that_of_numpy_and_scores_themselves_stay() -> None:
    scores = torch.from_numpy(np.random.default_rng(0).normal(size=(3, TASK.num_classes)))
    truth, count = torch.tensor([0, 1, 1]), TASK.num_classes
    nan = torch.full((3, count), torch.nan)
    balance = class_balance([f"polarity.{TASK.label_names[1]}=3"], 1.5, dataset(TRUTHS))
    assert balance is not None
    shift = torch.tensor([balance.adjustments["polarity"]] * 3, dtype=torch.float64)
    weights = torch.tensor([balance.weights["polarity"][int(index)] for index in truth])
    paths = torch.zeros(3, count, 1, dtype=torch.long)
    targets = AnswerTargets(paths, truth, nan, torch.full((3,), torch.nan), weights, shift)
    prior = np.array([Counter(TRUTHS)[index] for index in range(count)]) / len(TRUTHS)
    expected = -log_softmax(scores.numpy() + 1.5 * np.log(prior), axis=1)[np.arange(3), truth.numpy()] * [1, 3, 3]
    assert training_losses(scores, targets).numpy() == pytest.approx(expected)
    plain = -log_softmax(scores.numpy(), axis=1)[np.arange(3), truth.numpy()]
    assert question_losses(scores, targets).numpy() == pytest.approx(plain)
    again = targets_from(dict(as_batch(targets)))
    assert torch.equal(again.weights, weights) if again.weights is not None else pytest.fail("the weights are lost")
    assert torch.equal(again.adjustments, shift) if again.adjustments is not None else pytest.fail("lost")


@pytest.mark.parametrize(
    ("entries", "tau", "message"),
    [
        (["emotion.joy=2"], 0.0, "names task 'emotion'; classification tasks here: polarity"),
        (["polarity.joy=2"], 0.0, "class_weights: polarity.joy=2: label 'joy' is not in task 'polarity'"),
        (["polarity.positive"], 0.0, "is not TASK.LABEL=WEIGHT"),
        (["polarity.positive=0"], 0.0, "a weight must be above 0 and finite"),
        (["polarity.positive=nan"], 0.0, "a weight must be above 0 and finite"),
        (["balanced", "polarity.positive=2"], 0.0, "alone, say balanced"),
    ],
)
def test_weights_that_are_not_of_the_task_are_refused(entries: list[str], tau: float, message: str) -> None:
    with pytest.raises(UserError, match=message):
        class_balance(entries, tau, dataset(TRUTHS))


def test_a_label_that_training_lacks_is_not_raised_by_the_adjustment_nor_counted_in_weights() -> None:
    found = class_balance(["balanced"], 1.0, dataset([0, 0, 0, 0]))
    assert found is not None
    assert list(found.weights["polarity"]) == [1.0] * TASK.num_classes
    assert list(found.adjustments["polarity"]) == [0.0] * TASK.num_classes  # log 1, and none


@pytest.mark.parametrize(("name", "value"), [("class_weights", ["balanced"]), ("logit_adjustment", 1.0)])
def test_tokens_have_no_use_for_them(
    arguments: Callable[..., list[str]], name: str, value: object, no_backbone: None
) -> None:
    with pytest.raises(UserError, match=f"{name}: .* say objective: answers"):
        build_trainer(parse_arguments(arguments(**{name: value})))


def test_a_training_batch_brings_the_priors_of_the_training_split(arguments: Callable[..., list[str]]) -> None:
    given = {"tasks": ["emotion", "sentiment"], "objective": "answers", "class_weights": ["balanced"]}
    trainer = build_trainer(parse_arguments(arguments(**given, logit_adjustment=1.0)))
    collator = trainer.data_collator
    batch = collator([{"question": index} for index in range(8)])
    questions = collator.collator.dataset.questions
    own = [str(q.truth) for q in questions if q.task.name == "emotion"]
    emotion = get_task("emotion")
    for row in range(8):
        question = questions[row]
        if question.task.name == "emotion":
            n = own.count(str(question.truth))
            assert float(batch["answer_weights"][row]) == pytest.approx(len(own) / (len(set(own)) * n))
            priors = [np.log(own.count(name) / len(own)) if name in own else 0.0 for name in emotion.label_names]
            assert batch["answer_adjustments"][row, : emotion.num_classes].numpy() == pytest.approx(priors, rel=1e-5)
        else:
            assert float(batch["answer_weights"][row]) == 1.0
            assert not batch["answer_adjustments"][row].any()


def test_a_number_weighs_one() -> None:
    balance = ClassBalance({}, {})
    train = MerDataset([Utterance("a", language="en", text="hi", labels={"sentiment": 1.0})], [get_task("sentiment")])
    assert balance.weight(train.questions[0]) == 1.0
    with pytest.raises(UserError, match="has no classification task"):
        class_balance(["balanced"], 0.0, train)
