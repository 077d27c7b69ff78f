"""The Dialogical Emotion Decoder against a search through every state sequence, its cost written from the contract."""

import itertools
import math
from collections.abc import Hashable, Sequence

import numpy as np
import pytest

from llm_mer.errors import UserError
from llm_mer.scoring.dialogue_decoder import OnlineDialogueDecoder, decode, estimate_shift

STATES = 3


def sequence_cost(
    log_probs: Sequence[Sequence[float]], speakers: Sequence[Hashable], states: Sequence[int], p0: float, alpha: float
) -> float:
    """Cost of one state sequence, word by word from the contract: no arrays, no beam, everything counted anew."""
    cost = 0.0
    for n, (speaker, state) in enumerate(zip(speakers, states, strict=True)):
        cost -= float(log_probs[n][state])
        blocks = dict.fromkeys(range(len(log_probs[0])), 0)
        latest: dict[Hashable, int] = {}
        for m in range(n):  # a block is opened by every earlier step that is no stay of its speaker
            if latest.get(speakers[m]) != states[m]:
                blocks[states[m]] += 1
            latest[speakers[m]] = states[m]
        total = sum(blocks.values())
        if speaker in latest and state in states[:n]:
            if latest[speaker] == state:
                cost -= math.log(1 - p0)
            else:
                cost -= math.log(p0) + math.log(blocks[state]) - math.log(total + alpha)
        else:
            cost -= math.log(p0) + math.log(alpha) - math.log(total + alpha)
    return cost


def brute_force(
    log_probs: Sequence[Sequence[float]], speakers: Sequence[Hashable], p0: float, alpha: float, passes: int = 1
) -> tuple[float, list[int]]:
    """Least cost over every sequence of states through all passes, and the last pass's states."""
    rows, voices = list(log_probs) * passes, list(speakers) * passes
    best = min(
        itertools.product(range(len(log_probs[0])), repeat=len(rows)),
        key=lambda states: sequence_cost(rows, voices, states, p0, alpha),
    )
    return sequence_cost(rows, voices, best, p0, alpha), list(best[-len(log_probs) :])


def random_dialogue(seed: int, length: int, num_speakers: int, states: int = STATES) -> tuple[np.ndarray, list[str]]:
    generator = np.random.default_rng(seed)
    logits = generator.normal(scale=1.2, size=(length, states))
    log_probs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return log_probs, [f"speaker {i}" for i in generator.integers(0, num_speakers, length)]


@pytest.mark.parametrize("num_speakers", [1, 2, 3])
@pytest.mark.parametrize("length", [1, 2, 4, 6])
@pytest.mark.parametrize(("p0", "alpha"), [(0.3, 1.0), (0.7, 0.4), (0.05, 5.0)])
def test_one_pass_with_a_wide_beam_is_the_best_of_all_sequences(
    num_speakers: int, length: int, p0: float, alpha: float
) -> None:
    for seed in range(2):
        log_probs, speakers = random_dialogue(seed, length, num_speakers)
        found = decode(log_probs, speakers, p0, alpha, beam_size=STATES**length, passes=1)
        cost, states = brute_force(log_probs, speakers, p0, alpha)
        assert found.tolist() == states
        assert sequence_cost(log_probs, speakers, found.tolist(), p0, alpha) == pytest.approx(cost)


@pytest.mark.parametrize("seed", range(5))
def test_the_beams_own_cost_is_that_of_its_sequence(seed: int) -> None:
    log_probs, speakers = random_dialogue(seed, 20, 3, states=5)
    decoder = OnlineDialogueDecoder(5, 0.4, alpha=0.7, beam_size=4, keep_path=True)
    for row, speaker in zip(log_probs, speakers, strict=True):
        decoder.push(row, speaker)
    assert decoder.cost[0] == pytest.approx(sequence_cost(log_probs, speakers, decoder.path().tolist(), 0.4, 0.7))


@pytest.mark.parametrize(("length", "num_speakers"), [(2, 1), (3, 2), (4, 2), (4, 3)])
def test_two_passes_are_one_search_over_the_dialogue_twice_and_keep_the_second(length: int, num_speakers: int) -> None:
    for seed in range(2):
        log_probs, speakers = random_dialogue(seed + 10, length, num_speakers)
        found = decode(log_probs, speakers, 0.35, 1.0, beam_size=STATES ** (2 * length), passes=2)
        assert found.tolist() == brute_force(log_probs, speakers, 0.35, 1.0, passes=2)[1]


def test_two_passes_are_the_default() -> None:
    differing = 0
    for seed in range(30):
        log_probs, speakers = random_dialogue(seed, 12, 2)
        twice = decode(log_probs, speakers, 0.3, passes=2).tolist()
        doubled = decode(np.concatenate([log_probs, log_probs]), speakers * 2, 0.3, passes=1).tolist()
        assert decode(log_probs, speakers, 0.3).tolist() == twice == doubled[12:]
        differing += twice != decode(log_probs, speakers, 0.3, passes=1).tolist()
    assert differing > 0  # else this could not tell one pass from two


def test_the_second_pass_judges_the_beginning_in_the_light_of_the_end() -> None:
    # Undecided first, then a long stretch of state 1 by the same speaker.
    log_probs = np.log(np.array([[0.505, 0.495]] + [[0.05, 0.95]] * 4))
    assert decode(log_probs, ["a"] * 5, 0.5, passes=1, beam_size=1).tolist() == [0, 1, 1, 1, 1]
    assert decode(log_probs, ["a"] * 5, 0.5, passes=2, beam_size=1).tolist() == [1, 1, 1, 1, 1]


def test_inertia_overrides_a_weak_contradiction_but_not_a_strong_one() -> None:
    weak = np.log(np.array([[0.9, 0.1], [0.9, 0.1], [0.45, 0.55], [0.9, 0.1]]))
    assert decode(weak, ["a"] * 4, 0.1, passes=1).tolist() == [0, 0, 0, 0]
    strong = np.log(np.array([[0.9, 0.1], [0.9, 0.1], [1e-6, 1 - 1e-6], [0.99, 0.01]]))
    assert decode(strong, ["a"] * 4, 0.1, passes=1).tolist() == [0, 0, 1, 0]


def test_inertia_is_a_speakers_own() -> None:
    log_probs = np.log(np.array([[0.9, 0.1], [0.1, 0.9]] * 4))
    assert decode(log_probs, ["a", "b"] * 4, 0.05).tolist() == [0, 1] * 4
    # One speaker alone would hardly shift eight times.
    assert decode(log_probs, ["a"] * 8, 0.001).tolist() != [0, 1] * 4


def test_what_a_speaker_is_called_does_not_matter() -> None:
    log_probs, speakers = random_dialogue(3, 15, 3)
    names = {"speaker 0": 7, "speaker 1": None, "speaker 2": ("x", 1)}
    assert decode(log_probs, speakers, 0.4).tolist() == decode(log_probs, [names[s] for s in speakers], 0.4).tolist()


def test_every_utterance_by_a_new_speaker_is_decoded() -> None:
    log_probs, _ = random_dialogue(4, 6, 1)
    found = decode(log_probs, list(range(6)), 0.3, beam_size=STATES**6, passes=1)
    assert found.tolist() == brute_force(log_probs, list(range(6)), 0.3, 1.0)[1]


# --- ties -------------------------------------------------------------------------------------------------------------


def test_ties_go_to_the_lower_state() -> None:
    log_probs = np.zeros((1, 4))
    assert decode(log_probs, ["a"], 0.5, passes=1).tolist() == [0]
    assert decode(np.array([[-1.0, 0.0, 0.0, -1.0]]), ["a"], 0.5, passes=1, beam_size=1).tolist() == [1]


def test_ties_keep_the_better_ranked_hypothesis_first() -> None:
    decoder = OnlineDialogueDecoder(2, 0.2, beam_size=2, keep_path=True)
    decoder.push(np.zeros(2), "a")
    decoder.push(np.zeros(2), "a")
    assert decoder.cost[0] == decoder.cost[1]  # staying in 0 and staying in 1
    assert decoder.path().tolist() == [0, 0]
    # Rank beats state index: 1 leads after the first utterance, the second evens the costs out, 1 still leads.
    decoder = OnlineDialogueDecoder(2, 0.2, beam_size=2, keep_path=True)
    decoder.push(np.array([-1.0, 0.0]), "a")
    decoder.push(np.array([0.0, -1.0]), "a")
    assert decoder.cost[0] == decoder.cost[1]
    assert decoder.path().tolist() == [1, 1]


def test_ties_among_many_candidates_still_go_to_the_lower_state() -> None:
    for seed in range(50):  # a sort that is not stable would shuffle so many equal costs
        log_probs = -np.random.default_rng(seed).integers(0, 3, size=60).astype(float)
        assert OnlineDialogueDecoder(60, 0.5).push(log_probs, "a") == int(np.argmax(log_probs))


# --- the online mode --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("beam_size", [1, 5])
@pytest.mark.parametrize("seed", range(3))
def test_online_states_at_the_end_equal_the_offline_single_pass(seed: int, beam_size: int) -> None:
    log_probs, speakers = random_dialogue(seed, 25, 3, states=6)
    decoder = OnlineDialogueDecoder(6, 0.4, beam_size=beam_size, keep_path=True)
    for n, (row, speaker) in enumerate(zip(log_probs, speakers, strict=True), start=1):
        emitted = decoder.push(row, speaker)
        offline = decode(log_probs[:n], speakers[:n], 0.4, beam_size=beam_size, passes=1)
        assert emitted == offline[-1]
        assert decoder.path().tolist() == offline.tolist()


def test_with_a_beam_of_one_the_emitted_states_are_the_path() -> None:
    log_probs, speakers = random_dialogue(8, 30, 2)
    decoder = OnlineDialogueDecoder(STATES, 0.4, beam_size=1, keep_path=True)
    emitted = [decoder.push(row, speaker) for row, speaker in zip(log_probs, speakers, strict=True)]
    assert emitted == decoder.path().tolist()


def test_path_of_the_last_few_utterances_is_the_end_of_the_whole_path() -> None:
    log_probs, speakers = random_dialogue(9, 10, 2)
    decoder = OnlineDialogueDecoder(STATES, 0.4, keep_path=True)
    assert decoder.path().tolist() == []
    for row, speaker in zip(log_probs, speakers, strict=True):
        decoder.push(row, speaker)
    for count in (0, 1, 4, 10):
        assert decoder.path(count).tolist() == decoder.path().tolist()[10 - count :]


def containers(decoder: OnlineDialogueDecoder) -> list[np.ndarray | list[object] | dict[object, object]]:
    return [value for value in vars(decoder).values() if isinstance(value, np.ndarray | list | dict)]


def test_without_the_path_a_decoder_emits_the_same_and_stays_as_large_as_it_was() -> None:
    log_probs, speakers = random_dialogue(10, 300, 3)
    keeping, constant = OnlineDialogueDecoder(STATES, 0.4, keep_path=True), OnlineDialogueDecoder(STATES, 0.4)
    sizes = []
    for row, speaker in zip(log_probs, speakers, strict=True):
        assert constant.push(row, speaker) == keeping.push(row, speaker)
        sizes.append(sum(len(np.ravel(v)) if isinstance(v, np.ndarray) else len(v) for v in containers(constant)))
    assert len(set(sizes[20:])) == 1
    assert len(keeping.path()) == 300
    with pytest.raises(ValueError, match="keep_path"):
        constant.path()


def test_the_beam_keeps_its_size_and_its_order() -> None:
    log_probs, speakers = random_dialogue(12, 10, 2)
    decoder = OnlineDialogueDecoder(STATES, 0.4, beam_size=5)
    widths = []
    for row, speaker in zip(log_probs, speakers, strict=True):
        decoder.push(row, speaker)
        widths.append(len(decoder.cost))
        assert (np.diff(decoder.cost) >= 0).all()
    assert widths == [3, *[5] * 9]  # the first step expands a single empty hypothesis


# --- estimating the shift probability ---------------------------------------------------------------------------------


def test_shift_estimate_on_a_hand_counted_example() -> None:
    #       dialogue 1: a: joy joy anger (1 shift of 2), b: joy anger (1 of 1); dialogue 2: a: joy joy joy (0 of 2)
    rows = [
        ("joy", "a", 1),
        ("joy", "b", 1),
        ("joy", "a", 1),
        ("anger", "b", 1),
        ("anger", "a", 1),
        ("joy", "a", 2),
        ("joy", "a", 2),
        ("joy", "a", 2),
    ]
    states, speakers, dialogues = zip(*rows, strict=True)
    assert estimate_shift(states, speakers, dialogues) == pytest.approx((2 + 1) / 5)


def test_a_speaker_of_another_dialogue_is_another_speaker() -> None:
    assert estimate_shift([0, 1, 1, 1, 1], ["a"] * 5, [1, 2, 2, 2, 2]) == pytest.approx(1 / 3)


def test_the_shift_estimate_stays_inside_the_open_unit_interval() -> None:
    assert estimate_shift([0, 1], ["a", "a"], [1, 1]) == pytest.approx(1.0, abs=1e-5)
    assert estimate_shift([0, 1], ["a", "a"], [1, 1]) < 1.0
    assert estimate_shift([], [], []) == 0.5
    assert estimate_shift([0, 1], ["a", "b"], [1, 1]) == 0.5
    log_probs, speakers = random_dialogue(0, 5, 2)
    assert len(decode(log_probs, speakers, estimate_shift([0, 1, 0], ["a"] * 3, [1] * 3))) == 5


# --- input ------------------------------------------------------------------------------------------------------------


def test_nan_is_an_error() -> None:
    log_probs, speakers = random_dialogue(0, 5, 2)
    log_probs[3, 1] = np.nan
    with pytest.raises(UserError, match="NaN"):
        decode(log_probs, speakers, 0.3)
    with pytest.raises(UserError, match="NaN"):
        OnlineDialogueDecoder(STATES, 0.3).push(log_probs[3], "a")


def test_scores_that_are_not_normalised_are_taken_as_they_are() -> None:
    log_probs, speakers = random_dialogue(5, 6, 2)
    shifted = log_probs + np.arange(6)[:, None]
    assert decode(shifted, speakers, 0.3).tolist() == decode(log_probs, speakers, 0.3).tolist()
    logits = log_probs * 3 + 1
    found = decode(logits, speakers, 0.3, beam_size=STATES**6, passes=1)
    assert found.tolist() == brute_force(logits, speakers, 0.3, 1.0)[1]


def test_an_impossible_state_is_never_chosen() -> None:
    log_probs, speakers = random_dialogue(6, 12, 2)
    log_probs[:, 1] = -np.inf
    log_probs[4, 0] = -np.inf
    states = decode(log_probs, speakers, 0.01)
    assert 1 not in states
    assert states[4] == 2


def test_no_utterance_decodes_to_no_state() -> None:
    assert decode(np.zeros((0, 4)), [], 0.3).shape == (0,)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"p_shift": 0.0}, "p_shift"),
        ({"p_shift": 1.0}, "p_shift"),
        ({"p_shift": float("nan")}, "p_shift"),
        ({"alpha": 0.0}, "alpha"),
        ({"beam_size": 0}, "beam_size"),
        ({"passes": 0}, "passes"),
        ({"speakers": ["a"]}, "speakers"),
        ({"log_probs": np.zeros(2)}, "log_probs"),
    ],
)
def test_parameters_out_of_range_are_errors_naming_them(arguments: dict[str, object], named: str) -> None:
    good: dict[str, object] = {"log_probs": np.zeros((2, 3)), "speakers": ["a", "b"], "p_shift": 0.3}
    with pytest.raises(UserError, match=named):
        decode(**{**good, **arguments})  # type: ignore[arg-type]


def test_an_utterance_with_another_number_of_states_is_an_error() -> None:
    with pytest.raises(UserError, match="shape"):
        OnlineDialogueDecoder(3, 0.3).push(np.zeros(4), "a")


def test_a_corpus_of_150_dialogues_of_70_turns_and_13_labels_is_decoded_whole() -> None:
    for seed in range(150):
        log_probs, speakers = random_dialogue(seed, 70, 4, states=13)
        states = decode(log_probs, speakers, 0.4)
        assert states.shape == (70,)
        assert states.min() >= 0
        assert states.max() < 13
