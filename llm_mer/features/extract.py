"""From a manifest of media to a store of features: in parallel, resumable, one bad file stops nothing."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from llm_mer.data.schema import Utterance
from llm_mer.data.store import write_store
from llm_mer.errors import UserError
from llm_mer.features.acoustic import EXTRACTORS, OPENSMILE_NOTICE, AcousticExtractor
from llm_mer.features.media import MediaError, read_audio, read_frames
from llm_mer.features.visual import HogFlow, Landmarks, VisualExtractor

logger = logging.getLogger(__name__)

NONE, NGRAMS = "none", "ngrams"
QUARANTINE = "quarantine.jsonl"
IN_FLIGHT = 8
"""Utterances handed to each worker ahead of time."""


@dataclass
class FeatureSettings:
    """How features are made. Stored with the features and with every checkpoint trained on them."""

    audio: str = field(
        default="egemaps",
        metadata={
            "help": "egemaps (openSMILE eGeMAPSv02, audEERING research licence), librosa (log-mel and F0, free), a speech "
            "encoder by hub name or folder (WavLM, HuBERT, CLAP), or none"
        },
    )
    vision: str = field(
        default="hog_flow",
        metadata={
            "help": "hog_flow (gradients and optical flow of the face), landmarks (MediaPipe, needs --landmark-model), a "
            "picture encoder by hub name or folder (CLIP), or none"
        },
    )
    text: str = field(
        default=NONE,
        metadata={
            "help": "none (the backbone embeds the transcript), ngrams (hashed character n-grams, no model needed), or a "
            "text encoder by hub name or folder (RoBERTa, BERT)"
        },
    )
    audio_rate: float = field(default=12.5, metadata={"help": "acoustic descriptor steps a second (at most 100)"})
    vision_fps: float = field(default=6.0, metadata={"help": "pictures a second"})
    face_model: str | None = field(
        default=None, metadata={"help": "YuNet ONNX file that finds the face (default: frame centre)"}
    )
    landmark_model: str | None = field(default=None, metadata={"help": "MediaPipe face_landmarker.task file"})
    device: str = field(default="cpu", metadata={"help": "where pretrained encoders run"})

    def check(self) -> None:
        """Raises :class:`UserError` naming the option."""
        if not 0 < self.audio_rate <= 100:
            raise UserError(f"audio_rate is {self.audio_rate}; it must lie in (0, 100]")
        if not 0 < self.vision_fps <= 60:
            raise UserError(f"vision_fps is {self.vision_fps}; it must lie in (0, 60]")
        if self.device != "cpu":
            import torch

            try:
                torch.device(self.device)
            except RuntimeError:
                raise UserError(f"device is {self.device!r}; it must be cpu, cuda, cuda:0 or another of torch's") from None
        if (self.audio, self.vision, self.text) == (NONE, NONE, NONE):
            raise UserError("audio, vision and text are all none: there is nothing to extract")

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, entry: dict[str, Any]) -> FeatureSettings:
        """Read :meth:`to_dict` back. Raises :class:`UserError` for fields of another version."""
        unknown = sorted(set(entry) - {f.name for f in dataclasses.fields(cls)})
        if unknown:
            raise UserError(f"feature settings hold unknown fields {unknown}; they come from another version")
        return cls(**entry)


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
        """The part that defines the features."""
        return FeatureSettings(**{f.name: getattr(self, f.name) for f in dataclasses.fields(FeatureSettings)})


@dataclass
class Rejected:
    """One file that could not be used."""

    id: str
    field: str
    file: str
    reason: str
    message: str


@dataclass
class Extracted:
    """Features of one utterance, by modality, and what was rejected on the way."""

    features: dict[str, np.ndarray]
    rejected: list[Rejected]


class Extractor:
    """Loads what the settings name, once, and turns utterances into features."""

    def __init__(self, settings: FeatureSettings) -> None:
        settings.check()
        self.settings = settings
        self.audio: AcousticExtractor | None = None
        self.vision: VisualExtractor | None = None
        self.text: Any = None
        if settings.audio in EXTRACTORS:
            self.audio = EXTRACTORS[settings.audio](settings.audio_rate)
        elif settings.audio != NONE:
            from llm_mer.features.encoders import SpeechEncoder

            self.audio = SpeechEncoder(settings.audio, settings.device)
        if settings.vision == "hog_flow":
            self.vision = HogFlow(settings.face_model)
        elif settings.vision == "landmarks":
            self.vision = Landmarks(settings.landmark_model)
        elif settings.vision != NONE:
            from llm_mer.features.encoders import PictureEncoder

            self.vision = PictureEncoder(settings.vision, settings.device)
        if settings.text == NGRAMS:
            from llm_mer.features.ngrams import HashedNgrams

            self.text = HashedNgrams()
        elif settings.text != NONE:
            from llm_mer.features.encoders import TextEncoder

            self.text = TextEncoder(settings.text, settings.device)

    @property
    def names(self) -> dict[str, list[str]]:
        """Names of the feature dimensions of each modality that is extracted."""
        parts = {"audio": self.audio, "vision": self.vision, "text": self.text}
        return {modality: part.names for modality, part in parts.items() if part is not None}

    def __call__(self, utterance: Utterance) -> Extracted:
        """Features of every modality the utterance has; a file that fails is in ``rejected``."""
        found = Extracted({}, [])
        if self.audio is not None and utterance.audio is not None:
            audio, path = self.audio, utterance.audio
            self._attempt(found, utterance, "audio", path, lambda: audio(read_audio(path)))
        if self.vision is not None and utterance.vision is not None:
            vision, file, fps = self.vision, utterance.vision, self.settings.vision_fps
            self._attempt(found, utterance, "vision", file, lambda: vision(read_frames(file, fps)))
        if self.text is not None and utterance.text:
            encoder, words = self.text, utterance.text
            self._attempt(found, utterance, "text", "transcript", lambda: encoder(words))
        return found

    @staticmethod
    def _attempt(found: Extracted, utterance: Utterance, name: str, path: str, work: Callable[[], np.ndarray]) -> None:
        try:
            features = work()
        except MediaError as error:
            found.rejected.append(Rejected(utterance.id, name, path, error.reason, str(error)))
        except Exception as error:
            # Any exception, on purpose: the descriptors are other people's code (OpenCV, openSMILE, librosa, MediaPipe,
            # transformers), each with exceptions of its own, and one file on which one fails is a bad file, named in the
            # quarantine; it must not end a run over thousands. KeyboardInterrupt and SystemExit still do.
            message = str(error) or type(error).__name__
            found.rejected.append(Rejected(utterance.id, name, path, "descriptor_failed", f"{path}: {message}"))
        else:
            if features.ndim != 2 or not features.size:
                message = f"{path}: features have shape {features.shape}"
                found.rejected.append(Rejected(utterance.id, name, path, "descriptor_failed", message))
            elif not np.isfinite(features).all():
                found.rejected.append(Rejected(utterance.id, name, path, "not_finite", f"{path}: features hold NaN"))
            else:
                found.features[name] = features


def with_features(utterance: Utterance, features: dict[str, np.ndarray]) -> Utterance:
    """The utterance with features filled in."""
    # Any: the fields are known by name only.
    changes: dict[str, Any] = {f"{modality}_features": values for modality, values in features.items()}
    return dataclasses.replace(utterance, **changes)


_extractors: dict[str, Extractor] = {}


def extract_one(utterance: Utterance, settings: FeatureSettings) -> Utterance:
    """Features of one utterance (inference). Extractors are kept for the next call with the same settings.

    Raises:
        MediaError, UserError: the first file that cannot be used.
    """
    key = json.dumps(settings.to_dict(), sort_keys=True)
    if key not in _extractors:
        _extractors[key] = Extractor(settings)
    found = _extractors[key](utterance)
    if found.rejected:
        raise UserError(f"utterance {utterance.id!r}: {found.rejected[0].message}")
    return with_features(utterance, found.features)


# --- a whole manifest -------------------------------------------------------------------------------------------------


class _Worker:
    """State of one worker process."""

    extractor: Extractor | None = None


def _start_worker(settings: FeatureSettings, threads: int) -> None:
    import torch

    torch.set_num_threads(threads)
    try:
        import cv2
    except ImportError:
        pass
    else:
        cv2.setNumThreads(threads)
    _Worker.extractor = Extractor(settings)


def _work(utterance: Utterance, part: Path) -> None:
    assert _Worker.extractor is not None
    _save_part(part, _Worker.extractor(utterance))


def _part_path(folder: Path, utterance: Utterance, settings: FeatureSettings) -> Path:
    """Where one utterance's result waits; a changed setting, file or text gives another name."""
    key: list[Any] = [utterance.id, utterance.text, settings.to_dict()]
    for media in (utterance.audio, utterance.vision):
        state = os.stat(media) if media is not None and os.path.isfile(media) else None
        key.append([media, state.st_size, state.st_mtime_ns] if state else [media])
    return folder / f"{hashlib.sha256(json.dumps(key, ensure_ascii=False).encode()).hexdigest()[:32]}.npz"


def _save_part(path: Path, found: Extracted) -> None:
    scratch = path.with_suffix(f".{os.getpid()}.tmp")
    rejected = json.dumps([asdict(r) for r in found.rejected], ensure_ascii=False)
    with scratch.open("wb") as stream:
        np.savez(stream, rejected=np.array(rejected), **found.features)  # type: ignore[arg-type]
    scratch.replace(path)


def _load_part(path: Path) -> Extracted:
    with np.load(path, allow_pickle=False) as stored:
        features = {name: stored[name] for name in stored.files if name != "rejected"}
        return Extracted(features, [Rejected(**entry) for entry in json.loads(str(stored["rejected"]))])


def extract(config: ExtractConfig, utterances: Sequence[Utterance], progress: bool = True) -> Path:
    """Write a store of features for the utterances; returns its folder.

    Results wait one file an utterance in ``<output>.parts`` until all are there, so an interrupted call goes on where it
    stopped. What cannot be decoded is listed in ``<output>/quarantine.jsonl`` with a reason. A worker that dies takes
    only its own utterance with it.

    Raises:
        UserError: options out of range, an extractor that cannot be loaded, or nothing left to store.
    """
    settings, output = config.settings, Path(config.output)
    settings.check()
    if config.workers < 1:
        raise UserError(f"workers is {config.workers}; it must be at least 1")
    if config.on_bad_media not in ("drop", "missing"):
        raise UserError(f"on_bad_media is {config.on_bad_media!r}; choose drop or missing")
    if settings.audio == "egemaps":
        logger.warning(OPENSMILE_NOTICE)
    names = Extractor(settings).names  # an option that cannot work fails here, before any worker starts
    parts = output.with_name(f"{output.name}.parts")
    parts.mkdir(parents=True, exist_ok=True)
    places = [_part_path(parts, utterance, settings) for utterance in utterances]
    missing = [(u, p) for u, p in zip(utterances, places, strict=True) if not p.is_file()]
    with tqdm(
        total=len(places), initial=len(places) - len(missing), desc="extract", unit="clip", disable=not progress
    ) as bar:
        _run(missing, settings, config.workers, bar)
    rejected: list[Rejected] = []

    def stored() -> Iterator[Utterance]:
        for utterance, place in zip(utterances, places, strict=True):
            found = _load_part(place)
            rejected.extend(found.rejected)
            kept = with_features(utterance, found.features)
            has_any = kept.text is not None or bool(found.features)
            if has_any and not (found.rejected and config.on_bad_media == "drop"):
                yield kept

    description = {"source": Path(config.manifest).name, "features": settings.to_dict()}
    try:
        write_store(stored(), output, names, description)
    except UserError as error:
        if rejected:
            raise UserError(f"{error}; {len(rejected)} files were rejected, the first: {rejected[0].message}") from None
        raise
    lines = [json.dumps(asdict(r), ensure_ascii=False) for r in rejected]
    (output / QUARANTINE).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    if rejected:
        logger.warning("%d files could not be used; %s names each with its reason", len(rejected), output / QUARANTINE)
    shutil.rmtree(parts)
    return output


def extract_manifest(config: ExtractConfig) -> Path:
    """``llm-mer extract``: read the manifest or the public data set's files, then :func:`extract`.

    Raises:
        UserError: what cannot be read, ``labels`` for a public data set, and what :func:`extract` raises.
    """
    from llm_mer.data.sources import read_source, split_source
    from llm_mer.data.sources.manifest import read_manifest

    name, path = split_source(config.manifest, "manifest") or ("manifest", Path(config.manifest))
    if name == "manifest":
        return extract(config, read_manifest(path, config.labels))
    if config.labels:
        raise UserError(f"labels: {name} has its own; they are for columns of a manifest")
    return extract(config, list(read_source(name, path)))


def _run(tasks: list[tuple[Utterance, Path]], settings: FeatureSettings, workers: int, bar: Any) -> None:
    """Do all tasks in ``workers`` processes; when one dies, what was in work is retried one by one to find the culprit."""
    waiting = tasks
    while waiting:
        suspects, waiting = _run_pool(waiting, settings, workers, bar)
        while suspects:
            crashed, suspects = _run_pool(suspects, settings, 1, bar, in_flight=1)
            for utterance, part in crashed:
                file = str(utterance.vision or utterance.audio)
                message = f"{file}: the decoder crashed on it"
                _save_part(part, Extracted({}, [Rejected(utterance.id, "media", file, "crashed", message)]))
                bar.update()


def _run_pool(
    tasks: list[tuple[Utterance, Path]], settings: FeatureSettings, workers: int, bar: Any, in_flight: int | None = None
) -> tuple[list[tuple[Utterance, Path]], list[tuple[Utterance, Path]]]:
    """Run tasks in a pool; returns those a worker may have died of, and those not begun by then."""
    limit = in_flight or workers * IN_FLIGHT
    waiting = list(reversed(tasks))
    running: dict[Future[None], tuple[Utterance, Path]] = {}
    with ProcessPoolExecutor(workers, get_context("spawn"), _start_worker, (settings, 1)) as pool:
        try:
            while waiting or running:
                while waiting and len(running) < limit:
                    running[pool.submit(_work, *waiting[-1])] = waiting[-1]
                    waiting.pop()  # only now: a pool that broke in between refuses the task
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    future.result()
                    del running[future]
                    bar.update()
        except BrokenProcessPool:
            lost = [task for task in running.values() if not task[1].is_file()]
            bar.update(len(running) - len(lost))
            return lost, list(reversed(waiting))
        except BaseException:
            for future in running:
                future.cancel()
            raise
    return [], []
