"""What the answers depend on, on synthetic answers of which is known by construction what they were made from."""

import numpy as np
import pytest

from llm_mer.evaluation.clusters import Clusters
from llm_mer.evaluation.conditions import ADAPTER, AS_IS, Condition
from llm_mer.evaluation.dependence import MOVED, NO_EFFECT, READ, Dependence, find_dependence
from llm_mer.evaluation.resampling import mean_interval
from llm_mer.inference.prediction import Prediction
from llm_mer.prompting.tasks import get_task

EMOTION, LABELS = get_task("emotion"), get_task("emotion").label_names
REPLACEABLE_PARTS = ("transcript", "audio", "vision")
SWAPS = [Condition(f"{part} shuffled", "shuffle", (part,)) for part in REPLACEABLE_PARTS]
N = 200


def answers(reads: dict[str, float], tells: tuple[str, ...]) -> dict[str, list[Prediction]]:
    """Answers of a reader that takes each part's own word in a share of utterances, on data where only ``tells`` tell.

    A part that tells holds the truth, another a random label; a shuffled part holds that of the neighbour.
    """
    random = np.random.default_rng(0)
    truth = random.integers(0, len(LABELS), N)
    parts = {part: truth if part in tells else random.integers(0, len(LABELS), N) for part in REPLACEABLE_PARTS}
    chosen = random.choice(len(REPLACEABLE_PARTS), N, p=[reads.get(part, 0.0) for part in REPLACEABLE_PARTS])
    found = {}
    for swapped in (None, *REPLACEABLE_PARTS):
        seen = np.stack([np.roll(parts[part], part == swapped) for part in REPLACEABLE_PARTS])
        said = seen[chosen, np.arange(N)]
        found[AS_IS if swapped is None else f"{swapped} shuffled"] = [
            Prediction(f"u{i}", "emotion", "en", LABELS[said[i]], truth=LABELS[truth[i]], dialogue_id=f"d{i % 50}")
            for i in range(N)
        ]
    return found


@pytest.mark.parametrize(("tells", "words"), [("transcript", "the words"), ("audio", "the sound"), ("vision", "the face")])
def test_the_sentence_names_the_one_part_that_tells_and_is_read(tells: str, words: str) -> None:
    found = find_dependence(EMOTION, answers({tells: 1.0}, (tells,)), SWAPS, 300, 0)
    assert found is not None
    rest = [name for name in ("the words", "the sound", "the face") if name != words]
    assert found.sentence == f"The language model reads {words}; it is not seen to read {rest[0]} or {rest[1]}."


def test_a_part_that_is_read_but_tells_nothing_moves_the_answers_without_a_gain() -> None:
    found = find_dependence(EMOTION, answers({"transcript": 0.6, "audio": 0.4}, ("transcript",)), SWAPS, 300, 0)
    assert found is not None
    assert [swap.verdict for swap in found.swaps] == [READ, MOVED, NO_EFFECT]
    assert "reads the words; it lets the sound move its answers without a gain; it is not seen" in found.sentence


def test_shares_and_costs_are_those_counted_by_hand() -> None:
    made = answers({"audio": 1.0}, ("audio",))
    found = find_dependence(EMOTION, made, SWAPS, 300, 0)
    assert found is not None
    audio = found.swaps[1]
    changed = [p.value != q.value for p, q in zip(made[AS_IS], made["audio shuffled"], strict=True)]
    assert audio.changed.value == pytest.approx(np.mean(changed))
    assert audio.cost.value == pytest.approx(np.mean(changed))  # every answer as is was right
    assert (found.swaps[0].changed.value, found.swaps[0].cost.value) == (0.0, 0.0)
    assert Dependence.from_dict(found.to_dict()) == found


def test_an_adapter_alone_is_named_as_what_reads_and_agrees_with_no_head() -> None:
    found = find_dependence(EMOTION, answers({"audio": 1.0}, ("audio",)), SWAPS, 300, 0, with_backbone=False)
    assert found is not None
    assert found.sentence.startswith("The adapter reads the sound")
    assert found.head_agreement is None


def test_agreement_with_the_head_is_counted_and_without_adapter_has_no_verdict() -> None:
    made = answers({"audio": 1.0}, ("audio",))
    for i, prediction in enumerate(made[AS_IS]):
        prediction.head_value = prediction.value if i % 4 else "none of these"
    made["without adapter"] = made["vision shuffled"]
    found = find_dependence(EMOTION, made, [Condition("without adapter", "without", (ADAPTER,))], 300, 0)
    assert found is not None
    assert found.head_agreement is not None
    assert found.head_agreement.value == pytest.approx(0.75)
    assert [swap.verdict for swap in found.swaps] == [None]
    assert found.sentence == ""


def test_the_words_alone_decide_where_the_words_with_their_features_are_swapped_too() -> None:
    made = answers({"audio": 1.0}, ("audio",))
    made["text shuffled"] = made["audio shuffled"]  # text features, not words, are what this reader reads
    both = [SWAPS[0], Condition("text shuffled", "shuffle", ("text",))]
    for conditions in (both, both[::-1]):
        found = find_dependence(EMOTION, made, conditions, 300, 0)
        assert found is not None
        assert found.sentence == "The language model is not seen to read the words."


def test_a_score_that_moves_less_than_a_twentieth_of_its_range_counts_as_the_same() -> None:
    task = get_task("sentiment")
    low, high = task.require_range()
    step = (high - low) / 100

    def scores(offset: float) -> list[Prediction]:
        return [Prediction(f"u{i}", task.name, "en", low + step * (i % 50) + offset, truth=low) for i in range(100)]

    made = {AS_IS: scores(0.0), "audio shuffled": scores(4 * step), "vision shuffled": scores(6 * step)}
    found = find_dependence(task, made, SWAPS[1:], 300, 0)
    assert found is not None
    assert [swap.changed.value for swap in found.swaps] == [0.0, 1.0]
    assert [swap.cost.value for swap in found.swaps] == pytest.approx([4 * step, 6 * step])


def test_no_swap_says_nothing() -> None:
    made = answers({"audio": 1.0}, ("audio",))
    assert find_dependence(EMOTION, made, [Condition("without text", "without", ("text",))], 300, 0) is None


def test_an_interval_over_clusters_is_that_of_the_means_where_all_of_a_cluster_are_alike() -> None:
    values = np.random.default_rng(1).normal(size=60)
    repeated, clusters = np.repeat(values, 5), Clusters.named("dialogue", [i // 5 for i in range(300)])
    low, high = mean_interval(repeated, clusters, 4000, 0)
    spread = 1.96 * values.std() / np.sqrt(60)
    assert (low, high) == pytest.approx((values.mean() - spread, values.mean() + spread), abs=0.1 * spread)
