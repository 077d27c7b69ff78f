"""Planning and writing the synthetic corpus: dialogues, speakers, splits and clips."""

from __future__ import annotations

import io
import json
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from importlib import metadata
from multiprocessing import get_context
from pathlib import Path
from typing import IO, Any

import numpy as np

from llm_mer.data.sources.synthetic.face import Look, draw_look, envelope, render
from llm_mer.data.sources.synthetic.sentences import sentence
from llm_mer.data.sources.synthetic.speech import Synthesiser, Voice, speak
from llm_mer.distributed.progress import track_progress
from llm_mer.errors import UserError
from llm_mer.storage.atomic_files import open_atomically, write_json_atomically
from llm_mer.storage.json_files import read_json_object
from llm_mer.storage.worker_processes import end_with_parent, ended_workers, without_interrupts

EMOTIONS: tuple[str, ...] = ("neutral", "joy", "sadness", "anger", "fear", "surprise")
SHARES: dict[str, float] = {"train": 0.62, "valid": 0.12, "test": 0.26}
SPEAKERS: dict[str, dict[str, int]] = {"train": {"m": 4, "f": 2}, "valid": {"m": 1, "f": 1}, "test": {"m": 2, "f": 2}}
"""Male and female voices of each split, in each language."""
VARIANTS: tuple[str, ...] = ("m1", "m2", "m3", "m4", "m5", "m6", "m7", "f1", "f2", "f3", "f4", "f5")
STAY_PROBABILITY, FOLLOW_PROBABILITY = 0.55, 0.15
NEUTRAL_WORDS, CONFLICT = 0.35, 0.12
STILL_FACE, FLAT_VOICE = 0.30, 0.25
"""Shares of utterances whose face (or voice, never both) hardly shows the emotion, so that neither is sufficient."""
MANIFEST, DESCRIPTION = "manifest.jsonl", "corpus.json"


@dataclass
class CorpusConfig:
    """Options of ``llm-mer make-corpus``."""

    output: str = field(default="data/corpus", metadata={"help": "folder of clips and manifest"})
    utterances_per_language: int = field(default=600, metadata={"help": "utterances in each language, all splits together"})
    languages: list[str] = field(default_factory=lambda: ["en", "zh"], metadata={"help": "en, zh or both"})
    seed: int = field(default=0, metadata={"help": "random seed; the result does not depend on the number of workers"})
    size: int = field(default=96, metadata={"help": "frame width and height in pixels (even)"})
    fps: int = field(default=12, metadata={"help": "frames per second"})
    workers: int = field(default=2, metadata={"help": "processes"})

    def check(self) -> None:
        """Raises :class:`UserError` naming the option."""
        unknown = sorted(set(self.languages) - {"en", "zh"})
        if unknown or not self.languages:
            raise UserError(f"languages: {self.languages} holds {unknown or 'nothing'}; choose from en, zh")
        if len(set(self.languages)) < len(self.languages):
            raise UserError(f"languages: {self.languages} names one twice")
        if self.utterances_per_language < 60:
            raise UserError(
                f"utterances_per_language is {self.utterances_per_language}; at least 60 are needed for the three splits"
            )
        if self.size < 48 or self.size % 2:
            raise UserError(f"size is {self.size}; it must be even and at least 48")
        if not 5 <= self.fps <= 60 or self.workers < 1:
            raise UserError(f"fps is {self.fps} (5 to 60), workers is {self.workers} (at least 1)")


@dataclass
class Plan:
    """The specification of one clip."""

    id: str
    split: str
    language: str
    text: str
    emotion: str
    intensity: float
    curve: float
    face: float
    voice: float
    sentiment: float
    dialogue_id: str
    turn: int
    speaker: str
    tags: list[str]
    seed: list[int]


@dataclass
class Speaker:
    """A voice and a face."""

    name: str
    voice: Voice
    look: Look


def assign_voices(seed: int) -> dict[str, list[str]]:
    """espeak variants of each split, the same for every language, so that no test voice occurs in any training."""
    generator = np.random.default_rng([seed, 5])
    shuffled = [VARIANTS[int(i)] for i in generator.permutation(len(VARIANTS))]
    remaining_variants = {sex: [variant for variant in shuffled if variant.startswith(sex)] for sex in "mf"}
    return {
        split: [remaining_variants[sex].pop() for sex, count in counts.items() for _ in range(count)]
        for split, counts in SPEAKERS.items()
    }


def create_speakers(config: CorpusConfig, language: str) -> dict[str, list[Speaker]]:
    """Create the speakers of each split; none is in two splits."""
    generator = np.random.default_rng([config.seed, config.languages.index(language), 7])
    found: dict[str, list[Speaker]] = {}
    for split, variants in assign_voices(config.seed).items():
        found[split] = []
        for variant in variants:
            base = 42 if variant.startswith("m") else 54
            voice = Voice(
                variant,
                float(base + generator.normal(0, 3)),
                float(generator.uniform(160, 180)),
                float(generator.uniform(0.42, 0.48)),
            )
            found[split].append(Speaker(f"{language}-{variant}", voice, draw_look(generator)))
    return found


def compute_sentiment(emotion: str, intensity: float, curve: float) -> float:
    """The sentiment score of a displayed emotion: its sign scaled by intensity, or the mouth's curve if neutral."""
    strength = (intensity - 0.55) / 0.6  # intensity 0.55 to 1.15 becomes 0 to 1
    if emotion == "joy":
        value = 0.8 + 2.2 * strength
    elif emotion in ("sadness", "anger"):
        value = -(0.8 + 2.2 * strength)
    elif emotion == "fear":
        value = -(0.5 + 1.7 * strength)
    elif emotion == "surprise":
        value = np.sign(curve) * (0.3 + 1.3 * strength)
    else:
        value = 0.8 * curve
    return float(np.clip(np.round(value, 1), -3, 3)) + 0.0


def plan_corpus(config: CorpusConfig) -> list[Plan]:
    """Plan every utterance of every dialogue: speaker, words and expression. Deterministic in the seed."""
    plans: list[Plan] = []
    for number, language in enumerate(config.languages):
        speakers = create_speakers(config, language)
        generator = np.random.default_rng([config.seed, number, 11])
        for split, share in SHARES.items():
            remaining, dialogue = round(config.utterances_per_language * share), 0
            while remaining > 0:
                turns = min(int(generator.integers(6, 11)), remaining)
                pair = generator.choice(len(speakers[split]), 2, replace=False)
                speaker_names = [speakers[split][int(i)].name for i in pair]
                emotions = [EMOTIONS[int(i)] for i in generator.integers(len(EMOTIONS), size=2)]
                for turn in range(turns):
                    speaker_index = turn % 2
                    if turn >= 2:
                        emotions[speaker_index] = _draw_next_emotion(
                            generator, emotions[speaker_index], emotions[1 - speaker_index]
                        )
                    name = f"{language}-{split}-{dialogue:03d}"
                    index = len(plans)
                    plans.append(
                        _plan(
                            generator,
                            config,
                            language,
                            split,
                            name,
                            turn,
                            speaker_names[speaker_index],
                            emotions[speaker_index],
                            index,
                        )
                    )
                remaining -= turns
                dialogue += 1
    return plans


def _draw_next_emotion(generator: np.random.Generator, own: str, partner: str) -> str:
    draw = generator.random()
    if draw < STAY_PROBABILITY:
        return own
    if draw < STAY_PROBABILITY + FOLLOW_PROBABILITY:
        return partner
    return EMOTIONS[int(generator.integers(len(EMOTIONS)))]


def _plan(
    generator: np.random.Generator,
    config: CorpusConfig,
    language: str,
    split: str,
    dialogue: str,
    turn: int,
    speaker: str,
    emotion: str,
    index: int,
) -> Plan:
    draw = generator.random()
    intensity = float(np.round(generator.uniform(0.55, 1.15), 3))
    curve = float(np.round(generator.uniform(-0.5, 0.5), 3))
    if emotion == "surprise":
        curve = float(np.round(generator.choice([-1, 1]) * generator.uniform(0.35, 0.7), 3))
    elif emotion != "neutral":
        curve = 0.0
    channel, faint = generator.random(), float(np.round(generator.uniform(0.05, 0.3), 3))
    face = faint if channel < STILL_FACE else 1.0
    voice = faint if STILL_FACE <= channel < STILL_FACE + FLAT_VOICE else 1.0
    word_emotion: str | None = emotion
    tags = ["emotional_words"]
    if draw < NEUTRAL_WORDS:
        word_emotion, tags = None, ["neutral_words"]
    elif draw < NEUTRAL_WORDS + CONFLICT:
        others = [e for e in EMOTIONS if e not in (emotion, "neutral")]
        word_emotion, tags = others[int(generator.integers(len(others)))], ["conflict"]
    elif emotion == "neutral":
        word_emotion, tags = None, ["neutral_words"]
    return Plan(
        id=f"{dialogue}-{turn:02d}",
        split=split,
        language=language,
        text=sentence(generator, language, word_emotion),
        emotion=emotion,
        intensity=intensity,
        curve=curve,
        face=face,
        voice=voice,
        sentiment=compute_sentiment(emotion, intensity, curve),
        dialogue_id=dialogue,
        turn=turn,
        speaker=speaker,
        tags=tags,
        seed=[config.seed, config.languages.index(language), 13, index],
    )


# --- clips ------------------------------------------------------------------------------------------------------------


class _ClipWriter:
    """State of one worker process."""

    current: _ClipWriter | None = None

    def __init__(self, config: CorpusConfig) -> None:
        self.config = config
        self.synthesiser = Synthesiser()
        self.speakers = {
            speaker.name: speaker
            for language in config.languages
            for group in create_speakers(config, language).values()
            for speaker in group
        }

    def write(self, plan: Plan) -> None:
        """Write one clip atomically."""
        config, speaker = self.config, self.speakers[plan.speaker]
        samples = speak(
            self.synthesiser,
            plan.text,
            plan.language,
            speaker.voice,
            plan.emotion,
            plan.intensity * plan.voice,
            [*plan.seed, 1],
        )
        frames = int(np.ceil(len(samples) / self.synthesiser.rate * config.fps))
        level = envelope(samples, self.synthesiser.rate, config.fps, frames)
        intensity, curve = plan.intensity * plan.face, plan.curve * plan.face
        pixels = render(speaker.look, plan.emotion, intensity, curve, level, config.fps, config.size, [*plan.seed, 2])
        # In memory first: a disk that fills up in a callback of the muxer would print a traceback beside the one line.
        clip = io.BytesIO()
        write_clip(clip, pixels, samples, config.fps, self.synthesiser.rate)
        with open_atomically(clip_path(Path(config.output), plan), "wb") as stream:
            stream.write(clip.getbuffer())


def clip_path(folder: Path, plan: Plan) -> Path:
    """``clips/<id>.mp4``."""
    return folder / "clips" / f"{plan.id}.mp4"


def write_clip(stream: IO[bytes], pixels: np.ndarray, samples: np.ndarray, fps: int, rate: int) -> None:
    """H.264 and AAC in mp4, of RGB frames ``(F, H, W, 3)`` and samples ``(N,)`` at ``rate`` Hz, into a seekable stream."""
    import av

    with av.open(stream, "w", format="mp4") as container:
        video = container.add_stream(
            "libx264", rate=fps, options={"preset": "veryfast", "crf": "20", "threads": "1", "x264-params": "no-mbtree=1"}
        )
        video.height, video.width, video.pix_fmt = pixels.shape[1], pixels.shape[2], "yuv420p"
        audio: Any = container.add_stream("aac", rate=rate)
        audio.bit_rate = 64000
        audio.layout = "mono"
        for frame in pixels:
            container.mux(video.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(video.encode())
        audio_frame = av.AudioFrame.from_ndarray(samples[None].astype(np.float32), format="fltp", layout="mono")
        audio_frame.sample_rate = rate
        fifo = av.AudioFifo()
        fifo.write(audio_frame)
        size = audio.codec_context.frame_size or 1024
        while (block := fifo.read(size, partial=True)) is not None:
            container.mux(audio.encode(block))
        container.mux(audio.encode())


def _start_worker(config: CorpusConfig) -> None:
    end_with_parent()
    import cv2

    cv2.setNumThreads(1)
    _ClipWriter.current = _ClipWriter(config)


def _write_clip_in_worker(plan: Plan) -> str:
    assert _ClipWriter.current is not None
    _ClipWriter.current.write(plan)
    return plan.id


def make_corpus(config: CorpusConfig, progress: bool = True) -> Path:
    """Write the clips, ``manifest.jsonl`` and ``corpus.json``; returns the manifest's path.

    Finished clips of the same configuration are kept, so an interrupted call resumes where it stopped.

    Raises:
        UserError: an option out of range, or a folder that holds a corpus of another configuration.
    """
    config.check()
    folder = Path(config.output)
    (folder / "clips").mkdir(parents=True, exist_ok=True)
    settings = {k: v for k, v in asdict(config).items() if k not in ("output", "workers")}
    description = folder / DESCRIPTION
    if description.is_file():
        found = read_json_object(description).get("settings", {})
        if found != settings:
            changed = sorted(k for k in settings if found.get(k) != settings[k])
            raise UserError(f"{folder} holds a corpus made with other {', '.join(changed)}; name another output")
    versions = {name: metadata.version(name) for name in ("numpy", "av", "opencv-python-headless", "espeakng-loader")}
    note = "A synthetic test bench: espeak-ng voices and drawn faces. Scores on it are not scores on people."
    write_json_atomically(description, {"settings": settings, "versions": versions, "note": note})
    plans = plan_corpus(config)
    missing = [plan for plan in plans if not clip_path(folder, plan).is_file()]
    bar = track_progress(
        total=len(plans), initial=len(plans) - len(missing), description="make clips", unit="clip", hidden=not progress
    )
    if config.workers == 1:
        _start_worker(config)
        for plan in missing:
            _write_clip_in_worker(plan)
            bar.update()
    elif missing:
        with (
            ProcessPoolExecutor(config.workers, get_context("spawn"), _start_worker, (config,)) as pool,
            ended_workers(folder / "clips"),
        ):
            with without_interrupts():
                made = [pool.submit(_write_clip_in_worker, plan) for plan in missing]
            for one in as_completed(made):
                one.result()
                bar.update()
    bar.close()
    manifest = folder / MANIFEST
    with open_atomically(manifest) as stream:
        for plan in plans:
            clip = str(clip_path(Path(), plan))
            entry = {
                "id": plan.id,
                "split": plan.split,
                "language": plan.language,
                "text": plan.text,
                "audio": clip,
                "video": clip,
                "emotion": plan.emotion,
                "sentiment": plan.sentiment,
                "dialogue_id": plan.dialogue_id,
                "turn": plan.turn,
                "speaker": plan.speaker,
                "tags": plan.tags,
            }
            stream.write(json.dumps(entry, ensure_ascii=False) + "\n")
    return manifest
