"""The test bench is what it says: deterministic, disjoint in speakers, with inertia, conflict and real H.264 and AAC."""

import json
import re
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from typing import IO

import av
import numpy as np
import pytest

from llm_mer.data.sources.manifest import read_manifest
from llm_mer.data.sources.synthetic import CorpusConfig, corpus, make_corpus, speech
from llm_mer.data.sources.synthetic.corpus import (
    CONFLICT,
    EMOTIONS,
    FLAT_VOICE,
    NEUTRAL_WORDS,
    SHARES,
    STILL_FACE,
    Plan,
    create_speakers,
    plan_corpus,
)
from llm_mer.data.sources.synthetic.sentences import EMOTIONAL_EN, EMOTIONAL_ZH, NEUTRAL_EN, NEUTRAL_ZH, SLOTS
from llm_mer.data.sources.synthetic.speech import Synthesiser
from llm_mer.errors import UserError
from llm_mer.features.media import read_audio, read_frames
from llm_mer.prompting.tasks import get_task

SMALL = CorpusConfig(utterances_per_language=60, languages=["en"], size=48, fps=6, workers=1)
CHANCE = 1 / len(EMOTIONS)


@pytest.fixture(scope="module")
def plans() -> list[Plan]:
    return plan_corpus(CorpusConfig())


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small corpus, made in this process. Tests do not change it."""
    folder = tmp_path_factory.mktemp("made")
    assert make_corpus(replace(SMALL, output=str(folder)), progress=False) == folder / "manifest.jsonl"
    return folder


def patterns(language: str) -> dict[str, list[re.Pattern[str]]]:
    """What a sentence of each emotion (``neutral``: of none) can look like."""
    neutral, emotional = (NEUTRAL_EN, EMOTIONAL_EN) if language == "en" else (NEUTRAL_ZH, EMOTIONAL_ZH)
    slots = {name: f"(?:{'|'.join(words)})" for name, words in SLOTS[language].items()}
    templates = {"neutral": neutral, **emotional}
    return {emotion: [re.compile(t.format(**slots)) for t in found] for emotion, found in templates.items()}


def told_by_words(plan: Plan, known: dict[str, dict[str, list[re.Pattern[str]]]]) -> set[str]:
    return {e for e, found in known[plan.language].items() if any(p.fullmatch(plan.text) for p in found)}


def assert_same_clips(first: Path, second: Path) -> None:
    """Equal samples and, up to the encoder, equal pixels.

    x264's macroblock tree reads memory it has not written at these sizes, so a few clips in a hundred come out encoded a
    little differently from what was drawn alike.
    """
    names = sorted(p.name for p in (first / "clips").iterdir())
    assert sorted(p.name for p in (second / "clips").iterdir()) == names
    differing = 0
    for name in names:
        one, other = first / "clips" / name, second / "clips" / name
        np.testing.assert_array_equal(read_audio(one), read_audio(other), err_msg=name)
        pixels, others = (read_frames(p, SMALL.fps).pixels.astype(int) for p in (one, other))
        assert pixels.shape == others.shape, name
        assert np.abs(pixels - others).mean() < 3, name
        differing += bool((pixels != others).any())
    assert differing < len(names) / 2


# --- the plan ---------------------------------------------------------------------------------------------------------


def test_the_plan_follows_from_the_seed_alone(plans: list[Plan]) -> None:
    assert plan_corpus(CorpusConfig()) == plans
    assert plan_corpus(CorpusConfig(workers=7, output="elsewhere", size=64, fps=25)) == plans
    assert [p.text for p in plan_corpus(CorpusConfig(seed=1))] != [p.text for p in plans]


def test_by_default_each_language_has_six_hundred_utterances_in_three_splits(plans: list[Plan]) -> None:
    assert Counter(p.language for p in plans) == {"en": 600, "zh": 600}
    for language in ("en", "zh"):
        counts = Counter(p.split for p in plans if p.language == language)
        assert counts == {split: round(600 * share) for split, share in SHARES.items()}


def test_ids_are_unique_and_so_are_the_seeds_of_clips(plans: list[Plan]) -> None:
    assert len({p.id for p in plans}) == len({tuple(p.seed) for p in plans}) == len(plans)


def test_no_speaker_is_in_two_splits_or_languages_and_no_voice_in_two_splits(plans: list[Plan]) -> None:
    places: dict[str, set[tuple[str, str]]] = {}
    for plan in plans:
        places.setdefault(plan.speaker, set()).add((plan.language, plan.split))
    assert all(len(found) == 1 for found in places.values())
    assert len(places) == 24
    heard: dict[str, set[str]] = {}
    for language in ("en", "zh"):
        for split, group in create_speakers(CorpusConfig(), language).items():
            assert {s.voice.variant[0] for s in group} == {"m", "f"}
            for speaker in group:
                heard.setdefault(speaker.voice.variant, set()).add(split)
    assert len(heard) == 12
    assert all(len(splits) == 1 for splits in heard.values())


def test_every_split_of_every_language_has_every_emotion(plans: list[Plan]) -> None:
    for language in ("en", "zh"):
        for split in SHARES:
            counts = Counter(p.emotion for p in plans if (p.language, p.split) == (language, split))
            assert set(counts) == set(EMOTIONS)
            assert max(counts.values()) < 0.4 * sum(counts.values())


def test_every_label_is_one_of_the_built_in_tasks(plans: list[Plan]) -> None:
    words = {label.name for label in get_task("emotion").labels}
    assert {p.emotion for p in plans} <= words


def test_sentiment_lies_in_range_and_its_sign_agrees_with_the_emotion(plans: list[Plan]) -> None:
    for plan in plans:
        assert -3 <= plan.sentiment <= 3
        assert plan.sentiment == round(plan.sentiment, 1)
        if plan.emotion == "joy":
            assert plan.sentiment > 0
        elif plan.emotion in ("sadness", "anger", "fear"):
            assert plan.sentiment < 0
        elif plan.emotion == "surprise":
            assert np.sign(plan.sentiment) == np.sign(plan.curve) != 0
        else:
            assert abs(plan.sentiment) <= 0.4
    surprise = [p.sentiment for p in plans if p.emotion == "surprise"]
    assert min(surprise) < 0 < max(surprise)


def test_sentiment_grows_with_intensity(plans: list[Plan]) -> None:
    for emotion in ("joy", "sadness", "anger", "fear"):
        found = sorted((p.intensity, abs(p.sentiment)) for p in plans if p.emotion == emotion)
        assert [s for _, s in found] == sorted(s for _, s in found)


def test_shares_of_neutral_words_and_conflict_are_as_set(plans: list[Plan]) -> None:
    strong = [p for p in plans if p.emotion != "neutral"]
    tags = Counter(tag for p in strong for tag in p.tags)
    assert tags["neutral_words"] / len(strong) == pytest.approx(NEUTRAL_WORDS, abs=0.05)
    assert tags["conflict"] / len(strong) == pytest.approx(CONFLICT, abs=0.04)
    assert tags["emotional_words"] / len(strong) == pytest.approx(1 - NEUTRAL_WORDS - CONFLICT, abs=0.05)
    assert all(len(p.tags) == 1 for p in plans)
    assert any("conflict" in p.tags for p in plans if p.split == "test")


def test_words_tell_what_the_tag_says(plans: list[Plan]) -> None:
    known = {language: patterns(language) for language in ("en", "zh")}
    for plan in plans:
        told = told_by_words(plan, known)
        assert len(told) == 1, plan
        if plan.tags == ["neutral_words"]:
            assert told == {"neutral"}, plan
        elif plan.tags == ["conflict"]:
            assert told.isdisjoint({plan.emotion, "neutral"}), plan
        else:
            assert told == {plan.emotion} != {"neutral"}, plan


def test_sentences_are_of_their_language_with_every_slot_filled(plans: list[Plan]) -> None:
    for plan in plans:
        assert "{" not in plan.text
        assert any("一" <= c <= "鿿" for c in plan.text) == (plan.language == "zh")
    for language in ("en", "zh"):
        assert len({p.text for p in plans if p.language == language}) > 400


def test_face_or_voice_may_be_faint_but_never_both(plans: list[Plan]) -> None:
    still, flat = [p.face < 1 for p in plans], [p.voice < 1 for p in plans]
    assert np.mean(still) == pytest.approx(STILL_FACE, abs=0.05)
    assert np.mean(flat) == pytest.approx(FLAT_VOICE, abs=0.05)
    assert not np.any(np.logical_and(still, flat))


def test_dialogues_have_two_speakers_in_turn_within_one_split(plans: list[Plan]) -> None:
    dialogues: dict[str, list[Plan]] = {}
    for plan in plans:
        dialogues.setdefault(plan.dialogue_id, []).append(plan)
    for turns in dialogues.values():
        assert [p.turn for p in turns] == list(range(len(turns)))
        assert len(turns) <= 10
        assert len({(p.split, p.language) for p in turns}) == 1
        speakers = [p.speaker for p in turns]
        assert len(set(speakers)) == min(2, len(turns))
        assert all(a == b for a, b in zip(speakers, speakers[2:], strict=False))
    assert np.mean([len(turns) for turns in dialogues.values()]) > 6


def test_a_speaker_stays_in_an_emotion_far_beyond_chance_and_partners_are_alike(plans: list[Plan]) -> None:
    own, partner = [], []
    for before, between, after in zip(plans, plans[1:], plans[2:], strict=False):
        if before.dialogue_id == after.dialogue_id:
            own.append(before.emotion == after.emotion)
            if before.emotion != after.emotion:
                partner.append(between.emotion == after.emotion)
    assert np.mean(own) > 3 * CHANCE
    assert np.mean(partner) > 1.5 * CHANCE


# --- clips ------------------------------------------------------------------------------------------------------------


def test_every_clip_has_h264_and_aac_that_last_equally_long(made: Path) -> None:
    clips = sorted((made / "clips").iterdir())
    assert len(clips) == 60
    assert all(path.suffix == ".mp4" and ".part" not in path.name for path in clips)
    for path in clips:
        with av.open(str(path)) as container:
            video, audio = container.streams.video[0], container.streams.audio[0]
            assert (video.codec_context.name, audio.codec_context.name) == ("h264", "aac")
            assert (video.width, video.height, video.average_rate) == (48, 48, 6)
            lengths = [float(s.duration * s.time_base) for s in (video, audio)]
        assert abs(lengths[0] - lengths[1]) < 0.2
        assert 0.4 < lengths[0] < 15


def test_a_clip_decodes_to_speech_and_a_moving_face(made: Path) -> None:
    for path in sorted((made / "clips").iterdir())[::10]:
        samples, frames = read_audio(path), read_frames(path, 6)
        assert 0.01 < np.sqrt((samples**2).mean()) < 0.5
        assert frames.pixels.shape[1:] == (48, 48, 3)
        assert frames.pixels.std() > 10
        assert np.abs(np.diff(frames.pixels.astype(int), axis=0)).mean() > 0.5


def test_the_manifest_says_what_was_planned_and_reads_with_its_clips(made: Path) -> None:
    utterances = read_manifest(made / "manifest.jsonl")
    plans = plan_corpus(SMALL)
    assert len(utterances) == len(plans) == 60
    for utterance, plan in zip(utterances, plans, strict=True):
        for name in ("id", "split", "language", "text", "dialogue_id", "turn", "speaker"):
            assert getattr(utterance, name) == getattr(plan, name)
        assert utterance.labels == {"emotion": plan.emotion, "sentiment": plan.sentiment}
        assert utterance.tags == tuple(plan.tags)
        assert utterance.audio == utterance.vision == str(made / "clips" / f"{plan.id}.mp4")
        assert Path(utterance.audio).is_file()


def test_the_description_names_settings_and_versions_and_that_it_is_synthetic(made: Path) -> None:
    entry = json.loads((made / "corpus.json").read_text())
    assert entry["settings"] == {k: v for k, v in asdict(SMALL).items() if k not in ("output", "workers")}
    assert {"numpy", "av", "espeakng-loader"} <= set(entry["versions"])
    assert "not scores on people" in entry["note"]


def test_two_worker_processes_make_the_same_corpus_as_one(made: Path, tmp_path: Path) -> None:
    make_corpus(replace(SMALL, output=str(tmp_path), workers=2), progress=False)
    for name in ("manifest.jsonl", "corpus.json"):
        assert (tmp_path / name).read_bytes() == (made / name).read_bytes()
    assert_same_clips(made, tmp_path)


def test_what_is_drawn_and_said_follows_from_the_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[tuple[np.ndarray, np.ndarray]] = []

    def write(_: IO[bytes], pixels: np.ndarray, samples: np.ndarray, *__: int) -> None:
        written.append((pixels, samples))

    monkeypatch.setattr(corpus, "write_clip", write)
    config = replace(SMALL, output=str(tmp_path))
    (tmp_path / "clips").mkdir()
    some = plan_corpus(config)[::6]
    for plan in some:
        corpus._ClipWriter(config).write(plan)
    writer = corpus._ClipWriter(config)
    for plan in reversed(some):
        writer.write(plan)
    for (pixels, samples), (again, said) in zip(written[: len(some)], reversed(written[len(some) :]), strict=True):
        np.testing.assert_array_equal(pixels, again)
        np.testing.assert_array_equal(samples, said)


@pytest.mark.parametrize("language", ["en", "zh"])
def test_what_is_spoken_follows_from_its_arguments_and_not_from_what_was_spoken_before(language: str) -> None:
    synthesiser, other = Synthesiser(), Synthesiser()
    text = {"en": "She saw this fish", "zh": "我们四点开始"}[language]
    first = synthesiser.synthesise(text, language, "f2", 170, 50, 50, seed=3)
    synthesiser.synthesise("Something else, fast and high", "en", "m3", 300, 90, 90)
    for again in (synthesiser, other, Synthesiser()):
        np.testing.assert_array_equal(again.synthesise(text, language, "f2", 170, 50, 50, seed=3), first)
    assert (synthesiser.synthesise(text, language, "f2", 170, 50, 50, seed=4) != first).any()
    assert len(synthesiser.synthesise(text, language, "f2", 300, 50, 50, seed=3)) < 0.8 * len(first)


def test_an_interrupted_making_goes_on_and_ends_the_same(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(SMALL, output=str(tmp_path))
    make, worked = corpus._write_clip_in_worker, []

    def interrupted(plan: Plan) -> str:
        if len(worked) == 5:
            raise KeyboardInterrupt
        worked.append(plan.id)
        return make(plan)

    with monkeypatch.context() as patch:
        patch.setattr(corpus, "_write_clip_in_worker", interrupted)
        with pytest.raises(KeyboardInterrupt):
            make_corpus(config, progress=False)
    assert not (tmp_path / "manifest.jsonl").exists()
    done = {p: p.stat().st_mtime_ns for p in (tmp_path / "clips").iterdir()}
    assert len(done) == 5
    make_corpus(config, progress=False)
    assert {p: p.stat().st_mtime_ns for p in done} == done
    assert (tmp_path / "manifest.jsonl").read_bytes() == (made / "manifest.jsonl").read_bytes()
    assert_same_clips(made, tmp_path)


def test_a_clip_broken_off_in_the_middle_does_not_count_as_made(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus, "write_clip", lambda stream, *_: (stream.write(b"half"), 1 / 0))
    with pytest.raises(ZeroDivisionError):
        make_corpus(replace(SMALL, output=str(tmp_path)), progress=False)
    assert not list((tmp_path / "clips").iterdir())


@pytest.mark.parametrize("change", [{"seed": 1}, {"fps": 12}, {"size": 64}, {"utterances_per_language": 90}])
def test_a_folder_with_a_corpus_of_other_settings_is_refused_and_left_alone(made: Path, change: dict[str, int]) -> None:
    before = (made / "corpus.json").read_bytes()
    (name,) = change
    with pytest.raises(UserError, match=rf"{made} holds a corpus made with other {name}; name another output"):
        make_corpus(replace(SMALL, output=str(made), **change), progress=False)
    assert (made / "corpus.json").read_bytes() == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"languages": ["en", "de"]}, r"languages: \['en', 'de'\] holds \['de'\]; choose from en, zh"),
        ({"languages": []}, r"languages: \[\] holds nothing"),
        ({"languages": ["en", "en"]}, r"languages: \['en', 'en'\] names one twice"),
        ({"utterances_per_language": 59}, "utterances_per_language is 59; at least 60"),
        ({"size": 47}, "size is 47; it must be even and at least 48"),
        ({"size": 51}, "size is 51"),
        ({"fps": 4}, "fps is 4"),
        ({"workers": 0}, "workers is 0"),
    ],
)
def test_an_option_out_of_range_is_named_and_nothing_is_made(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        make_corpus(replace(SMALL, output=str(tmp_path / "corpus"), **change), progress=False)
    assert not (tmp_path / "corpus").exists()


def test_a_voice_that_does_not_exist_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(speech.VOICES, "en", "nowhere")
    with pytest.raises(UserError, match=r"espeak-ng has no voice 'nowhere\+f1'"):
        Synthesiser().synthesise("hello", "en", "f1", 170, 50, 50)
