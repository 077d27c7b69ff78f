"""IEMOCAP: ten actors in five sessions of scripted and improvised dialogues.

Layout, the release's own (``IEMOCAP_full_release``), ``N`` from 1 to 5::

    SessionN/dialog/EmoEvaluation/Ses01F_impro01.txt      [6.2901 - 8.2357]\\tSes01F_impro01_F000\\tneu\\t[2.5, 2.5, 2.5]
    SessionN/dialog/transcriptions/Ses01F_impro01.txt     Ses01F_impro01_F000 [006.2901-008.2357]: Excuse me.
    SessionN/sentences/wav/Ses01F_impro01/Ses01F_impro01_F000.wav

Conventions: the evaluation files list the utterances (10039); lines found only in a transcription (``MXX0``, lines without
an id) are not read. The turn is the position in the dialogue by start time, both speakers interleaved. The speaker is the
session and the letter of the utterance's number: ``Ses01F_impro01_M003`` is spoken by ``Ses01M``, since the letter before it
says who wore the motion-capture markers. Labels: ``emotion`` as the majority of annotators gave it, so that one store serves
all conventions: task ``iemocap4`` counts excited as happy (5531 utterances), ``iemocap4_unmerged`` leaves excited out
(4490), ``iemocap6`` keeps both (7380). No majority (``xxx``), other, fear, surprise and disgust are labels these tasks
ignore, so their utterances stay in the windows of the others.

The release's videos show whole dialogues; clips of single utterances are read if they have been cut.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from llm_mer.data.schema import Utterance
from llm_mer.data.sources.meld import repair_text
from llm_mer.errors import UserError

EMOTIONS: dict[str, str] = {
    "ang": "angry",
    "hap": "happy",
    "exc": "excited",
    "sad": "sad",
    "neu": "neutral",
    "fru": "frustrated",
    "fea": "fear",
    "sur": "surprise",
    "dis": "disgust",
    "oth": "other",
    "xxx": "xxx",
}
"""Code of the evaluation files → label."""
SESSIONS: tuple[str, ...] = ("1", "2", "3", "4", "5")
CLIPS: tuple[str, ...] = (".mp4", ".avi", ".mkv", ".mov")
HELD_OUT = re.compile(r"(?:Session)?(?P<session>[1-5])|Ses0(?P<speaker>[1-5][FM])")
EVALUATION = re.compile(r"\[(\d+(?:\.\d+)?) - (\d+(?:\.\d+)?)\]\s+(\S+)\s+(\w+)\s+\[.*\]")
TRANSCRIPT = re.compile(r"(Ses\w+)\s*\[[^\]]*\]:(.*)")


def read_iemocap(path: Path | str, held_out: str = "Session5", media: Path | str | None = None) -> Iterator[Utterance]:
    """Read IEMOCAP's utterances in order of their start, one dialogue in memory at a time.

    Args:
        held_out: a session (``Session5`` or ``5``) that becomes the test split; the other four are training, and there is no
            validation split. Or a speaker (``Ses05F``) that becomes the test split; the session's other speaker is
            validation, the other four sessions are training. Their dialogues are then in both splits, each with its own
            speaker's turns only.
        media: folder with one clip per utterance, ``Ses01F_impro01_F000.mp4``, directly or in a folder named after the
            dialogue.

    Raises:
        UserError: a missing session, folder or transcription, a malformed line, an unknown emotion, an id of another
            dialogue.
    """
    root = Path(path)
    held_out_match = HELD_OUT.fullmatch(held_out)
    if held_out_match is None:
        raise UserError(f"held_out is {held_out!r}; it must be a session (Session1 to Session5) or a speaker (as in Ses01F)")
    if media is not None and not Path(media).is_dir():
        raise UserError(f"{media}: no such folder; media holds one clip per utterance, as in Ses01F_impro01_F000.mp4")
    # All five must exist: without one of them, holding out a session is not the standard protocol.
    files = {session: _evaluation_files(root, session) for session in SESSIONS}
    for session, dialogues in files.items():
        for file in dialogues:
            yield from _read_dialogue(
                file, root / f"Session{session}", session, held_out_match, Path(media) if media else None
            )


def _evaluation_files(root: Path, session: str) -> list[Path]:
    folder = root / f"Session{session}" / "dialog" / "EmoEvaluation"
    # Archives made on a Mac contain a ._ file beside each file.
    files = sorted(file for file in folder.glob("Ses*.txt") if file.is_file())
    if not files:
        raise UserError(f"{folder}: no Ses*.txt here; an IEMOCAP folder holds Session1 to Session5, each with this")
    return files


def _lines(file: Path) -> Iterator[tuple[str, str]]:
    try:
        with file.open(encoding="utf-8-sig", errors="surrogateescape") as stream:
            for number, line in enumerate(stream, 1):
                yield f"{file}:{number}", line.rstrip("\r\n")
    except FileNotFoundError:
        raise UserError(f"{file}: no such file; each dialogue of EmoEvaluation has a transcription") from None


def _split(session: str, speaker: str, held_out: re.Match[str]) -> str:
    if held_out["session"]:
        return "test" if session == held_out["session"] else "train"
    if session != held_out["speaker"][0]:
        return "train"
    return "test" if speaker == held_out["speaker"][1] else "valid"


def _read_dialogue(
    file: Path, folder: Path, session: str, held_out: re.Match[str], media: Path | None
) -> Iterator[Utterance]:
    dialogue = file.stem
    name = re.compile(rf"{re.escape(dialogue)}_([FM])\d+")
    found: list[tuple[float, float, str, str, str]] = []
    for where, line in _lines(file):
        if not line.startswith("["):
            continue
        row = EVALUATION.fullmatch(line.strip())
        if row is None:
            raise UserError(f"{where}: {line[:60]!r} is not [start - end], id, emotion, [valence, activation, dominance]")
        start, end, identifier, emotion = row.groups()
        id_match = name.fullmatch(identifier)
        if id_match is None:
            raise UserError(f"{where}: id {identifier!r} is not of the form {dialogue}_F000")
        if emotion not in EMOTIONS:
            raise UserError(f"{where}: emotion {emotion!r} of {identifier}; it must be one of {', '.join(EMOTIONS)}")
        found.append((float(start), float(end), identifier, id_match[1], EMOTIONS[emotion]))
    texts = dict(_transcripts(folder / "dialog" / "transcriptions" / file.name))
    for turn, (_, _, identifier, speaker, emotion) in enumerate(sorted(found)):
        if identifier not in texts:
            raise UserError(f"{folder / 'dialog' / 'transcriptions' / file.name}: no line of {identifier}")
        wav = folder / "sentences" / "wav" / dialogue / f"{identifier}.wav"
        clip = _clip(media, dialogue, identifier)
        yield Utterance(
            id=identifier,
            split=_split(session, speaker, held_out),
            language="en",
            text=texts[identifier],
            audio=str(wav) if wav.is_file() else None,
            vision=str(clip) if clip is not None else None,
            labels={"emotion": emotion},
            dialogue_id=dialogue,
            turn=turn,
            speaker=f"Ses0{session}{speaker}",
        )


def _transcripts(file: Path) -> Iterator[tuple[str, str]]:
    for _, line in _lines(file):
        row = TRANSCRIPT.fullmatch(line.strip())
        if row is not None:
            yield row[1], repair_text(row[2]).strip()


def _clip(media: Path | None, dialogue: str, identifier: str) -> Path | None:
    if media is None:
        return None
    candidates = (folder / f"{identifier}{suffix}" for folder in (media, media / dialogue) for suffix in CLIPS)
    return next((clip for clip in candidates if clip.is_file()), None)
