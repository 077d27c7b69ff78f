"""The pickles of MSE-Adapter: MELD, CHERMA and IEMOCAP.

Layout: a folder with ``meld_train.pkl``, ``meld_valid.pkl``, ``meld_test.pkl`` (or ``cherma_*``, ``iemocap_*``), or one such
file. Each is a list of ``{"features": {"audio": (T_a, D_a), "video": (T_v, D_v), "text": sentence, "audio_len": int,
"video_len": int}, "label": word}``, sequences padded to a common length.

Conventions: the first word of the file name is the data set and determines the valid labels, the last one is the split.
MELD labels are its English names, CHERMA's its Chinese words, IEMOCAP's words or three letters (``hap``). They are stored
under the task's name, ``joy`` for 高兴. The files have no conversations (no dialogue, turn or speaker), and ids are
positions in the file.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llm_mer.data.schema import SPLITS, Utterance
from llm_mer.data.sources.common import label_name, trim_padding
from llm_mer.data.sources.safe_pickle import load_pickle
from llm_mer.errors import UserError
from llm_mer.prompting.languages import LANGUAGES, detect_corpus_language
from llm_mer.prompting.tasks import Task, get_task

TASKS: dict[str, str] = {"meld": "meld", "cherma": "cherma", "iemocap": "iemocap6"}
"""Data set → task of its labels. Excitement is kept separate from happiness; the task ``iemocap4`` merges them."""
SPLIT_NAMES: dict[str, str] = {"train": "train", "valid": "valid", "val": "valid", "dev": "valid", "test": "test"}
ALIASES: dict[str, str] = {
    "hap": "happy",
    "sad": "sad",
    "neu": "neutral",
    "ang": "angry",
    "exc": "excited",
    "fru": "frustrated",
}
FEATURES: tuple[str, ...] = ("audio", "video", "text", "audio_len", "video_len")


def read_mse_adapter(
    path: Path | str, split: str | None = None, task: str | None = None, language: str | None = None
) -> Iterator[Utterance]:
    """Read the utterances of one file or of every split in a folder, one file in memory at a time.

    Args:
        split: of a single file whose name does not end in it. task: of the labels, if the file name does not begin with
            meld, cherma or iemocap. language: detected from the sentences if None.

    Raises:
        UserError: no such file, a missing field, an unknown label, a length that exceeds its sequence.
    """
    path = Path(path)
    for name, value, allowed in (("split", split, SPLITS), ("language", language, LANGUAGES)):
        if value is not None and value not in allowed:
            raise UserError(f"{name} is {value!r}; it must be one of {', '.join(allowed)}")
    if path.is_dir():
        files = sorted(file for file in path.glob("*.pkl") if _split_from_name(file) is not None)
        files.sort(key=lambda file: SPLITS.index(_split_from_name(file) or "test"))
        if not files:
            raise UserError(f"{path}: no file *_train.pkl, *_valid.pkl or *_test.pkl here")
        if split is not None:
            raise UserError(f"{path}: split is {split!r}, but the files of a folder name their splits")
        sets = sorted({file.stem.rpartition("_")[0] for file in files})
        if len(sets) > 1:
            raise UserError(f"{path}: files of {len(sets)} data sets ({', '.join(sets)}); use one folder each")
    else:
        files = [path]
    for file in files:
        file_split = split or _split_from_name(file)
        if file_split is None:
            raise UserError(f"{file}: the name does not end in _train, _valid or _test; give the split")
        yield from _read_file(file, file_split, get_task(task) if task else _task_from_name(file), language)


def _split_from_name(file: Path) -> str | None:
    return SPLIT_NAMES.get(file.stem.rpartition("_")[2].lower())


def _task_from_name(file: Path) -> Task:
    for name, task in TASKS.items():
        if file.stem.lower().startswith(name):
            return get_task(task)
    raise UserError(f"{file}: the name does not begin with {', '.join(TASKS)}; give the task whose labels these are")


def _read_file(file: Path, split: str, task: Task, language: str | None) -> Iterator[Utterance]:
    entries = load_pickle(file)
    if not isinstance(entries, list) or not entries:
        raise UserError(f"{file}: not an MSE-Adapter pickle: it must be a list of {{features, label}}")
    for number, entry in enumerate(entries):
        _check_entry(entry, f"{file}: entry {number}")
    if language is None:
        language = detect_corpus_language((str(entry["features"]["text"]) for entry in entries), str(file))
    data_set = file.stem.rpartition("_")[0] or file.stem
    for number, entry in enumerate(entries):
        where, features = f"{file}: entry {number}", entry["features"]
        yield Utterance(
            id=f"{data_set}-{split}-{number:05d}",
            split=split,
            language=language,
            text=str(features["text"]),
            audio_features=trim_padding(features["audio"], features["audio_len"], "audio", "audio_len", where),
            vision_features=trim_padding(features["video"], features["video_len"], "video", "video_len", where),
            labels={task.target: label_name(task, entry["label"], "label", where, ALIASES)},
        )


def _check_entry(entry: Any, where: str) -> None:
    if not isinstance(entry, dict):
        raise UserError(f"{where} is a {type(entry).__name__}; it must be a dict with features and label")
    for name in ("features", "label"):
        if name not in entry:
            raise UserError(f"{where} has no field {name}")
    if not isinstance(entry["features"], dict):
        raise UserError(f"{where}: field features is a {type(entry['features']).__name__}; it must be a dict")
    missing = [name for name in FEATURES if name not in entry["features"]]
    if missing:
        raise UserError(f"{where}: features has no field {', '.join(missing)}")
