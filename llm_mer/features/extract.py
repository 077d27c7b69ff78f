"""Extracting features from a manifest of media into a store: in parallel, resumable, and robust to bad files."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from llm_mer.data.feature_settings import FeatureSettings
from llm_mer.data.flags import count_flags
from llm_mer.data.long_clips import MAX_STEPS
from llm_mer.data.schema import Utterance
from llm_mer.data.store import QUARANTINE_FILE, check_store_place, write_store
from llm_mer.distributed.progress import track_progress
from llm_mer.errors import UserError
from llm_mer.features.acoustic import OPENSMILE_NOTICE
from llm_mer.features.extractor import Extracted, Extractor, Rejected, with_features
from llm_mer.prompting.languages import require_language
from llm_mer.storage.atomic_files import open_atomically
from llm_mer.storage.fingerprints import json_sha256
from llm_mer.storage.json_text import parse_json
from llm_mer.storage.locks import check_output_path, lock_output
from llm_mer.storage.watched_folder import watch_folder
from llm_mer.storage.worker_processes import end_with_parent, ended_workers, without_interrupts

logger = logging.getLogger(__name__)
TASKS_PER_WORKER = 8
"""Utterances queued for each worker."""
PART_FILE = re.compile(r"\.?[0-9a-f]{32}\.(npz|(npz\.)?\d+(\.[0-9a-f]{8})?\.tmp)")
"""Names of finished and unfinished result files of single utterances."""
PART_VERSION = 2
"""Of what such a file holds; those of another version are not read."""


@dataclass
class ExtractConfig(FeatureSettings):
    """Options of ``llm-mer extract``."""

    manifest: str = field(
        default="",
        metadata={
            "help": "JSONL or CSV manifest of clips, or FORMAT:PATH of public files (formats: `llm-mer prepare --help`)",
            "required": True,
        },
    )
    output: str = field(default="", metadata={"help": "folder of the store", "required": True})
    workers: int = field(default=2, metadata={"help": "processes"})
    labels: list[str] = field(
        default_factory=list, metadata={"help": "columns of the manifest that are targets of tasks of your own"}
    )
    on_bad_media: str = field(
        default="drop",
        metadata={
            "help": "an utterance with a file that cannot be decoded is dropped, or kept with that modality missing; "
            "either way quarantine.jsonl names it",
            "choices": ["drop", "missing"],
        },
    )

    @property
    def settings(self) -> FeatureSettings:
        """The settings that define the features."""
        return FeatureSettings(**{f.name: getattr(self, f.name) for f in dataclasses.fields(FeatureSettings)})


class _Worker:
    """State of a worker process."""

    extractor: Extractor | None = None


def _start_worker(settings: FeatureSettings, threads: int) -> None:
    import torch

    end_with_parent()
    torch.set_num_threads(threads)
    try:
        import cv2
    except ImportError:
        pass
    else:
        cv2.setNumThreads(threads)
    _Worker.extractor = Extractor(settings)


def _extract_one(utterance: Utterance, part: Path) -> None:
    assert _Worker.extractor is not None
    _save_part(part, _Worker.extractor(utterance))


def _part_path(folder: Path, utterance: Utterance, settings: FeatureSettings) -> Path:
    """Path of one utterance's intermediate result; a changed setting, file or text changes the name."""
    key: list[Any] = [PART_VERSION, utterance.id, utterance.text, settings.to_dict()]
    for media in (utterance.audio, utterance.vision):
        state = os.stat(media) if media is not None and os.path.isfile(media) else None
        key.append([media, state.st_size, state.st_mtime_ns] if state else [media])
    return folder / f"{json_sha256(key)[:32]}.npz"


def _save_part(path: Path, found: Extracted) -> None:
    rejected = json.dumps([asdict(r) for r in found.rejected], ensure_ascii=False)
    with open_atomically(path, "wb") as stream:
        flags = np.array(found.flags, dtype=str)
        np.savez(stream, rejected=np.array(rejected), flags=flags, **found.features)  # type: ignore[arg-type]


def load_part(path: Path) -> Extracted:
    """One utterance's waiting result. Raises :class:`UserError` for a file that no extraction wrote whole."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            features = {name: stored[name] for name in stored.files if name not in ("rejected", "flags")}
            rejected = [Rejected(**entry) for entry in parse_json(str(stored["rejected"]), "rejected")]
            return Extracted(features, rejected, stored["flags"].tolist())
    except (UserError, ValueError, TypeError, KeyError, OSError, EOFError, BadZipFile, zlib.error) as error:
        raise UserError(f"{path}: damaged ({error}); delete it, and the same command extracts this clip again") from None


def extract(
    config: ExtractConfig,
    utterances: Sequence[Utterance],
    progress: bool = True,
    description: Mapping[str, Any] | None = None,
) -> Path:
    """Write a store of features for the utterances; returns its folder. ``description`` is noted in it beside the settings.

    Results are kept in ``<output>.parts``, one file per utterance, until all are complete, so an interrupted call resumes
    where it stopped. Files that cannot be decoded are listed in ``<output>/quarantine.jsonl`` with a reason. A crashed
    worker loses only its own utterance.

    Raises:
        UserError: options out of range, an extractor that cannot be loaded, or nothing left to store.
    """
    check_output_path(config.output)
    settings, output = config.settings, Path(config.output)
    settings.check()
    if config.workers < 1:
        raise UserError(f"workers is {config.workers}; it must be at least 1")
    if config.on_bad_media not in ("drop", "missing"):
        raise UserError(f"on_bad_media is {config.on_bad_media!r}; choose drop or missing")
    check_store_place(output)  # here, and not when the store is written hours later
    if settings.audio == "egemaps":
        logger.warning(OPENSMILE_NOTICE)
    for utterance in utterances:  # now rather than hours later, when the store is written
        require_language(utterance.language, f"utterance {utterance.id!r}")
    names = Extractor(settings).names  # invalid options fail here, before any worker starts
    parts = output.with_name(f"{output.name}.parts")
    with lock_output(output), watch_folder(parts):
        _extract_into(config, utterances, names, parts, progress, description or {})
    remove_parts(parts)
    return output


def _extract_into(
    config: ExtractConfig,
    utterances: Sequence[Utterance],
    names: dict[str, list[str]],
    parts: Path,
    progress: bool,
    noted: Mapping[str, Any],
) -> None:
    settings, output = config.settings, Path(config.output)
    part_paths = [_part_path(parts, utterance, settings) for utterance in utterances]
    missing = [(u, p) for u, p in zip(utterances, part_paths, strict=True) if not p.is_file()]
    with track_progress(
        total=len(part_paths),
        initial=len(part_paths) - len(missing),
        description="extract",
        unit="clip",
        hidden=not progress,
    ) as bar:
        _extract_all(missing, settings, config.workers, bar)
    tally = _Tally()

    def stored() -> Iterator[Utterance]:
        for utterance, part_path in zip(utterances, part_paths, strict=True):
            found = load_part(part_path)
            tally.rejected.extend(found.rejected)
            kept = with_features(utterance, found)
            has_any = kept.text is not None or bool(found.features)
            if has_any and not (found.rejected and config.on_bad_media == "drop"):
                tally.add(found)
                yield kept

    def quarantine() -> dict[str, str]:
        lines = [json.dumps(asdict(r), ensure_ascii=False) for r in tally.rejected]
        return {QUARANTINE_FILE: "".join(f"{line}\n" for line in lines)}

    description = {"source": Path(config.manifest).name, "features": settings.to_dict(), **noted}
    try:
        write_store(stored(), output, names, description, quarantine)
    except UserError as error:
        if tally.rejected:
            first = tally.rejected[0].message
            raise UserError(f"{error}; {len(tally.rejected)} files were rejected, the first: {first}") from None
        raise
    tally.say(output)


@dataclass
class _Tally:
    """What is worth a word of the utterances that are stored: files not used, flags, clips longer than trainings read."""

    rejected: list[Rejected] = field(default_factory=list)
    flags: list[list[str]] = field(default_factory=list)
    long: dict[str, list[int]] = field(default_factory=dict)

    def add(self, found: Extracted) -> None:
        self.flags.append(found.flags)
        for modality, limit in MAX_STEPS.items():
            steps = len(found.features.get(modality, ()))
            if steps > limit:
                self.long.setdefault(modality, []).append(steps)

    def say(self, output: Path) -> None:
        if self.rejected:
            place = output / QUARANTINE_FILE
            logger.warning("%d files could not be used; %s names each with its reason", len(self.rejected), place)
        for modality, steps in self.long.items():
            option = f"max_{modality}_steps"
            logger.warning(
                "%s of %d clips has more steps than the %d that a training reads by default: say %s: %d, or split the clips",
                *(modality, len(steps), MAX_STEPS[modality], option, max(steps)),
            )
        if flagged := count_flags(self.flags):
            logger.warning("flags of %s; `llm-mer validate %s` names them", flagged, output)


def remove_parts(folder: Path) -> None:
    """Delete the intermediate results in a folder, including those of killed workers, and the folder if it is then empty."""
    for path in folder.iterdir():
        if PART_FILE.fullmatch(path.name):
            path.unlink()
    with suppress(OSError):  # not empty: it holds files that are not ours
        folder.rmdir()


def extract_manifest(config: ExtractConfig) -> Path:
    """``llm-mer extract``: read the manifest or the public data set's files, then :func:`extract`.

    Raises:
        UserError: input that cannot be read, ``labels`` with a public data set, and what :func:`extract` raises.
    """
    from llm_mer.data.sources import read_source, split_source
    from llm_mer.data.sources.manifest import read_manifest

    name, path = split_source(config.manifest, "manifest") or ("manifest", Path(config.manifest))
    if name == "manifest":
        utterances = read_manifest(path, config.labels)
        absent = [label for label in config.labels if not any(label in utterance.labels for utterance in utterances)]
        if absent:
            raise UserError(f"labels: no utterance of {path} has {', '.join(map(repr, absent))}")
        return extract(config, utterances)
    if config.labels:
        raise UserError(f"labels: {name} has its own; they are for columns of a manifest")
    return extract(config, list(read_source(name, path)))


def _extract_all(tasks: list[tuple[Utterance, Path]], settings: FeatureSettings, workers: int, bar: Any) -> None:
    """Run all tasks in ``workers`` processes; after a crash, tasks in progress are retried one by one to find the cause."""
    waiting = tasks
    while waiting:
        crash_suspects, waiting = _run_pool(waiting, settings, workers, bar)
        while crash_suspects:
            crashed, crash_suspects = _run_pool(crash_suspects, settings, 1, bar, in_flight=1)
            for utterance, part in crashed:
                file = str(utterance.vision or utterance.audio)
                message = f"{file}: the decoder crashed on it"
                _save_part(part, Extracted({}, [Rejected(utterance.id, "media", file, "crashed", message)]))
                bar.update()


def _run_pool(
    tasks: list[tuple[Utterance, Path]], settings: FeatureSettings, workers: int, bar: Any, in_flight: int | None = None
) -> tuple[list[tuple[Utterance, Path]], list[tuple[Utterance, Path]]]:
    """Run tasks in a pool; returns those that may have crashed a worker, and those not started by then."""
    limit = in_flight or workers * TASKS_PER_WORKER
    parts = tasks[0][1].parent
    waiting = list(reversed(tasks))
    running: dict[Future[None], tuple[Utterance, Path]] = {}
    with ProcessPoolExecutor(workers, get_context("spawn"), _start_worker, (settings, 1)) as pool, ended_workers(parts):
        try:
            while waiting or running:
                while waiting and len(running) < limit:
                    with without_interrupts():
                        running[pool.submit(_extract_one, *waiting[-1])] = waiting[-1]
                    waiting.pop()  # after submit: a broken pool refuses the task
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    future.result()
                    del running[future]
                    bar.update()
        except BrokenProcessPool:
            lost = [task for task in running.values() if not task[1].is_file()]
            bar.update(len(running) - len(lost))
            return lost, list(reversed(waiting))
    return [], []
