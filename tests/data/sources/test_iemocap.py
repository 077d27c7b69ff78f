"""IEMOCAP's release tree: order by start time, speaker from the id, excited merged or apart, both protocols."""

import wave
from collections import Counter
from pathlib import Path

import pytest

from llm_mer.data.dataset import MerDataset
from llm_mer.data.prepare import PrepareConfig, prepare
from llm_mer.data.schema import Utterance
from llm_mer.data.sources.iemocap import EMOTIONS, read_iemocap
from llm_mer.data.store import UtteranceStore
from llm_mer.data.validation.checks import Inspection
from llm_mer.data.validation.validate import check_utterances
from llm_mer.errors import UserError
from llm_mer.prompting.tasks import get_task

# In the order of the evaluation file, which lists one speaker's utterances before the other's.
TURNS = [
    ("F000", 6.2901, 8.2357, "neu", "Excuse me."),
    ("F001", 18.5, 20.1, "fru", "Do you have your forms? [LAUGHTER]"),
    ("F002", 103.25, 110.0, "xxx", "It’s nothing."),
    ("M000", 8.3, 12.75, "ang", "No: I don't."),
    ("M001", 20.0, 25.5, "exc", "Great!"),
    ("M002", 99.9, 103.0, "oth", "Hm."),
]


def evaluation(dialogue: str, turns: list[tuple[str, float, float, str, str]]) -> str:
    blocks = ["% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]\n"]
    for number, start, end, emotion, _ in turns:
        blocks.append(
            f"[{start:.4f} - {end:.4f}]\t{dialogue}_{number}\t{emotion}\t[2.5000, 3.0000, 2.0000]\n"
            "C-E2:\tNeutral;\t()\nC-F1:\tNeutral;\t(curious)\nA-E3:\tval 3; act 2; dom  2;\t()\n"
        )
    return "\n".join(blocks)


def write_dialogue(root: Path, dialogue: str, turns: list[tuple[str, float, float, str, str]] = TURNS) -> None:
    session = root / f"Session{dialogue[4]}"
    texts = [f"{dialogue}_{n} [{start:08.4f}-{end:08.4f}]: {text}\n" for n, start, end, _, text in turns]
    texts[1:1] = [f"{dialogue}_MXX0 [007.0000-007.1000]: [BREATHING]\n", "M: yeah\n"]
    for folder, content in (("EmoEvaluation", evaluation(dialogue, turns)), ("transcriptions", "".join(texts))):
        (session / "dialog" / folder).mkdir(parents=True, exist_ok=True)
        (session / "dialog" / folder / f"{dialogue}.txt").write_text(content, encoding="utf-8")
    (session / "dialog" / "EmoEvaluation" / f"._{dialogue}.txt").write_bytes(b"\x00\x05\x16\x07")
    for folder in ("Attribute", "Categorical", "Self-evaluation"):
        (session / "dialog" / "EmoEvaluation" / folder).mkdir(exist_ok=True)
        (session / "dialog" / "EmoEvaluation" / folder / f"{dialogue}_e2_cat.anvil").write_text("x")
    sounds = session / "sentences" / "wav" / dialogue
    sounds.mkdir(parents=True)
    for number, *_ in turns:
        with wave.open(str(sounds / f"{dialogue}_{number}.wav"), "wb") as stream:
            stream.setnchannels(1)
            stream.setsampwidth(2)
            stream.setframerate(16000)
            stream.writeframes(bytes(320))
    (session / "dialog" / "avi" / "DivX").mkdir(parents=True, exist_ok=True)
    (session / "dialog" / "avi" / "DivX" / f"{dialogue}.avi").write_bytes(b"")


@pytest.fixture
def release(tmp_path: Path) -> Path:
    root = tmp_path / "IEMOCAP_full_release"
    for session in "12345":
        write_dialogue(root, f"Ses0{session}F_impro01")
        write_dialogue(root, f"Ses0{session}M_script01_1b")
    return root


def by_dialogue(utterances: list[Utterance], dialogue: str) -> list[Utterance]:
    return [u for u in utterances if u.dialogue_id == dialogue]


def test_turns_follow_the_start_time_across_both_speakers(release: Path) -> None:
    found = by_dialogue(list(read_iemocap(release)), "Ses01F_impro01")
    assert [u.id.rpartition("_")[2] for u in found] == ["F000", "M000", "F001", "M001", "M002", "F002"]
    assert [u.turn for u in found] == [0, 1, 2, 3, 4, 5]


def test_the_speaker_is_the_letter_of_the_utterance_not_of_the_dialogue(release: Path) -> None:
    found = {u.id: u.speaker for u in read_iemocap(release)}
    assert found["Ses01F_impro01_M000"] == "Ses01M"
    assert found["Ses01M_script01_1b_F000"] == "Ses01F"
    assert set(found.values()) == {f"Ses0{s}{letter}" for s in "12345" for letter in "FM"}


def test_text_sound_and_labels_are_the_utterances_own(release: Path) -> None:
    found = {u.id: u for u in read_iemocap(release)}
    assert len(found) == 10 * len(TURNS)
    for number, _, _, emotion, text in TURNS:
        utterance = found[f"Ses03F_impro01_{number}"]
        assert (utterance.text, utterance.language) == (text, "en")
        assert utterance.labels == {"emotion": EMOTIONS[emotion]}
        assert Path(utterance.audio) == release / f"Session3/sentences/wav/Ses03F_impro01/Ses03F_impro01_{number}.wav"
        assert utterance.vision is None


def test_a_text_in_windows_1252_is_read(release: Path) -> None:
    file = release / "Session1/dialog/transcriptions/Ses01F_impro01.txt"
    file.write_bytes(file.read_bytes().replace("’".encode(), b"\x92"))
    assert "It’s nothing." in [u.text for u in by_dialogue(list(read_iemocap(release)), "Ses01F_impro01")]


def test_counts_of_the_conventions(release: Path) -> None:
    """The published counts of every label give 5531 with excited as happy, 4490 without it, 7380 for six classes."""
    published = dict(ang=1103, hap=595, exc=1041, sad=1084, neu=1708, fru=1849, sur=107, fea=40, dis=2, oth=3, xxx=2507)
    assert set(published) == set(EMOTIONS)
    assert sum(published.values()) == 10039
    for name, expected in (("iemocap4", 5531), ("iemocap4_unmerged", 4490), ("iemocap6", 7380)):
        task = get_task(name)
        counts: Counter[str] = Counter()
        for code, number in published.items():
            if not task.ignores(EMOTIONS[code]):
                counts[task.label_names[task.class_index(EMOTIONS[code])]] += number
        assert sum(counts.values()) == expected, name
        assert counts["happy"] == (1636 if name == "iemocap4" else 595)


@pytest.mark.parametrize(("task", "asked"), [("iemocap4", 3), ("iemocap4_unmerged", 2), ("iemocap6", 4)])
def test_unlabelled_utterances_stay_in_the_windows_and_are_not_asked_about(release: Path, task: str, asked: int) -> None:
    dialogue = by_dialogue(list(read_iemocap(release)), "Ses02F_impro01")
    dataset = MerDataset(dialogue, [get_task(task)])
    assert len(dataset.questions) == asked
    assert dataset.window(5).rows == list(range(6))


@pytest.mark.parametrize("held_out", ["Session2", "2"])
def test_leave_one_session_out(release: Path, held_out: str) -> None:
    found = list(read_iemocap(release, held_out=held_out))
    assert {u.speaker for u in found if u.split == "test"} == {"Ses02F", "Ses02M"}
    assert {u.speaker for u in found if u.split == "train"} == {f"Ses0{s}{letter}" for s in "1345" for letter in "FM"}
    assert {u.split for u in found} == {"train", "test"}
    assert [f for f in check_utterances(found, "iemocap", Inspection()).findings if f.severity != "info"] == []


def test_leave_one_speaker_out_validates_on_the_other_of_the_session(release: Path) -> None:
    found = list(read_iemocap(release, held_out="Ses04M"))
    assert {u.speaker for u in found if u.split == "test"} == {"Ses04M"}
    assert {u.speaker for u in found if u.split == "valid"} == {"Ses04F"}
    assert len({u.speaker for u in found if u.split == "train"}) == 8
    # Ids, order and turns are the same under every protocol.
    assert [(u.id, u.turn) for u in found] == [(u.id, u.turn) for u in read_iemocap(release)]
    report = check_utterances(found, "iemocap", Inspection())
    assert {(f.severity, f.check, f.split) for f in report.findings if f.severity != "info"} == {
        ("warning", "shared dialogue", "valid+test")
    }


def test_the_default_holds_out_the_last_session(release: Path) -> None:
    assert {u.dialogue_id for u in read_iemocap(release) if u.split == "test"} == {"Ses05F_impro01", "Ses05M_script01_1b"}


def test_clips_are_read_where_someone_has_cut_them(release: Path, tmp_path: Path) -> None:
    clips = tmp_path / "clips"
    (clips / "Ses01F_impro01").mkdir(parents=True)
    for name in ("Ses01F_impro01_F000.mp4", "Ses01F_impro01/Ses01F_impro01_M000.avi"):
        (clips / name).write_bytes(b"")
    found = {u.id: u.vision for u in read_iemocap(release, media=clips)}
    assert found["Ses01F_impro01_F000"] == str(clips / "Ses01F_impro01_F000.mp4")
    assert found["Ses01F_impro01_M000"] == str(clips / "Ses01F_impro01/Ses01F_impro01_M000.avi")
    assert found["Ses01F_impro01_F001"] is None
    with pytest.raises(UserError, match="nowhere: no such folder; media holds one clip per utterance"):
        next(read_iemocap(release, media=tmp_path / "nowhere"))


def test_a_release_without_sounds_is_text_alone(release: Path) -> None:
    for file in release.rglob("*.wav"):
        file.unlink()
    assert {u.audio for u in read_iemocap(release)} == {None}


def test_a_store_is_prepared_with_the_protocol_in_its_description(release: Path, tmp_path: Path) -> None:
    store = prepare(PrepareConfig("iemocap", str(release), str(tmp_path / "store"), held_out="Ses01F"))
    info = UtteranceStore.open(store).info
    assert info.counts == {"train": 48, "valid": 6, "test": 6}
    assert info.description["held_out"] == "Ses01F"
    with pytest.raises(UserError, match="held_out: the format cped has no such option"):
        prepare(PrepareConfig("cped", "x", str(tmp_path / "store"), held_out="Ses01F"))


@pytest.mark.parametrize("held_out", ["Session6", "Ses01", "6", "Ses06F", "Ses01F_impro01", ""])
def test_what_is_no_session_or_speaker_is_refused(release: Path, held_out: str) -> None:
    with pytest.raises(UserError, match=f"held_out is '{held_out}'; it must be a session .* or a speaker"):
        next(read_iemocap(release, held_out=held_out))


def spoil(release: Path, old: str, new: str, folder: str = "EmoEvaluation") -> Path:
    file = release / "Session3" / "dialog" / folder / "Ses03F_impro01.txt"
    content = file.read_text(encoding="utf-8")
    assert old in content
    file.write_text(content.replace(old, new, 1), encoding="utf-8")
    return release


@pytest.mark.parametrize(
    ("old", "new", "folder", "message"),
    [
        ("\tneu\t", "\tbored\t", "EmoEvaluation", r"impro01\.txt:3: emotion 'bored' of Ses03F_impro01_F000; it must be one"),
        ("6.2901 - ", "6,2901 - ", "EmoEvaluation", r"impro01\.txt:3: '\[6,2901 .* is not \[start - end\], id, emotion"),
        (
            "Ses03F_impro01_F000",
            "Ses03F_impro02_F000",
            "EmoEvaluation",
            r"txt:3: id 'Ses03F_impro02_F000' is not of",
        ),
        (
            "Ses03F_impro01_M000 ",
            "Ses03F_impro01_M009 ",
            "transcriptions",
            r"transcriptions.*: no line of Ses03F_.*_M000",
        ),
    ],
)
def test_a_damaged_line_is_named(release: Path, old: str, new: str, folder: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        list(read_iemocap(spoil(release, old, new, folder)))


def test_missing_parts_are_named(release: Path, tmp_path: Path) -> None:
    (release / "Session2/dialog/transcriptions/Ses02F_impro01.txt").unlink()
    with pytest.raises(UserError, match=r"Ses02F_impro01\.txt: no such file; each dialogue of EmoEvaluation has"):
        list(read_iemocap(release))
    (release / "Session4").rename(release / "Session6")
    with pytest.raises(UserError, match=r"Session4.*no Ses\*\.txt here; an IEMOCAP folder holds Session1 to Session5"):
        next(read_iemocap(release))
    with pytest.raises(UserError, match=r"no Ses\*\.txt here"):
        next(read_iemocap(tmp_path / "nowhere"))
