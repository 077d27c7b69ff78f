"""Broken inputs by kind: how each is made, what reads it, and what has to be said of it."""

from __future__ import annotations

import builtins
import collections
import dataclasses
import json
import os
import pickle
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from conftest import make_utterances, training_options

Build = Callable[["Ground"], Path]


@dataclass(frozen=True)
class Ground:
    """Where a broken input is made: an empty folder, and whole things to break."""

    folder: Path
    request: pytest.FixtureRequest

    @property
    def store(self) -> Path:
        return Path(self.request.getfixturevalue("store"))

    @property
    def backbone(self) -> Path:
        return Path(self.request.getfixturevalue("backbones")["llama"])

    @property
    def other_backbone(self) -> Path:
        return Path(self.request.getfixturevalue("other_backbone"))

    def checkpoint(self) -> Path:
        """A copy of a complete checkpoint."""
        return Path(shutil.copytree(self.request.getfixturevalue("trained"), self.folder / "checkpoint"))

    def write(self, name: str, content: bytes | str) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path


@dataclass(frozen=True)
class Fault:
    """One broken input.

    Attributes:
        name: of the entry. build: makes the input and returns what ``read`` is given.
        message: regular expression of what has to be said: the field, what was found, what would be right.
        named: what the message has to name beside it; None is the file that was built.
    """

    name: str
    build: Build
    read: Callable[[Path, Ground], Any]
    message: str
    named: str | None = None


def lines(*rows: Any) -> str:
    """JSONL; a text is a line as it is."""
    return "".join(f"{row if isinstance(row, str) else json.dumps(row, ensure_ascii=True)}\n" for row in rows)


def file(name: str, content: bytes | str) -> Build:
    return lambda ground: ground.write(name, content)


def cut(path: Path, share: float = 0.5) -> Path:
    """The same file without its end."""
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    return path


def edit(path: Path, change: Callable[[Any], Any]) -> Path:
    """A JSON file with ``change`` made to its content in place, or replaced by what it returns."""
    content = json.loads(path.read_text(encoding="utf-8"))
    replaced = change(content)
    path.write_text(json.dumps(content if replaced is None else replaced), encoding="utf-8")
    return path


def evaluated(prediction: str) -> Build:
    """An evaluation without scores, with one line of predictions."""

    def build(ground: Ground) -> Path:
        from llm_mer.evaluation.rows import Evaluation

        path = ground.write("evaluation/predictions.jsonl", f"{prediction}\n")
        Evaluation("x", {}, "data", "test", 0, 10).save(path.parent)
        return path

    return build


def read_report(path: Path, ground: Ground) -> None:
    from llm_mer.reporting.facts import load_evaluation

    load_evaluation(str(path.parent))


def read_trajectories(path: Path, ground: Ground) -> None:
    from llm_mer.evaluation.rows import Evaluation
    from llm_mer.reporting.facts import LoadedEvaluation

    LoadedEvaluation(Evaluation("x", {}, "data", "test", 0, 10), {}, path.parent, path.parent).read_trajectories()


def read_answers(path: Path, ground: Ground) -> None:
    from llm_mer.reporting.sections.examples import inference_section

    inference_section(path)


def continue_answers(path: Path, ground: Ground) -> None:
    from llm_mer.inference.output_file import finished_ids

    finished_ids(path)


# --- media ------------------------------------------------------------------------------------------------------------


def clip(
    ground: Ground,
    name: str = "clip.mp4",
    seconds: float = 0.8,
    pictures: bool = True,
    count: int = 20,
    sound: bool = True,
    index_first: bool = False,
) -> Path:
    """A clip of noise, H.264 and AAC, with ``count`` pictures."""
    av = pytest.importorskip("av", reason="PyAV is not installed")
    generator, path = np.random.default_rng(0), ground.folder / name
    with av.open(str(path), "w", options={"movflags": "faststart"} if index_first else {}) as container:
        video = container.add_stream("libx264", rate=25, options={"crf": "0", "preset": "ultrafast"}) if pictures else None
        audio = container.add_stream("aac", rate=16_000, layout="mono") if sound else None
        if video is not None:
            video.height, video.width, video.pix_fmt = 48, 64, "yuv420p"
            for _ in range(count):
                picture = generator.integers(0, 256, (48, 64, 3), dtype=np.uint8)
                container.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(video.encode())
        if audio is not None:
            samples = generator.uniform(-0.5, 0.5, (1, round(seconds * 16_000))).astype(np.float32)
            for start in range(0, samples.shape[1], 1024):
                block = np.ascontiguousarray(samples[:, start : start + 1024])
                frame = av.AudioFrame.from_ndarray(block, format="fltp", layout="mono")
                frame.sample_rate, frame.pts = 16_000, start
                container.mux(audio.encode(frame))
            container.mux(audio.encode())
    return path


def wav(ground: Ground, samples: np.ndarray, name: str = "sound.wav") -> Path:
    """Float32 samples at 16 kHz, the header written by hand."""
    import struct

    data = samples.astype("<f4").tobytes()
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 3, 1, 16_000, 64_000, 4, 32)
    body = b"WAVE" + form + struct.pack("<4sI", b"data", len(data)) + data
    return ground.write(name, struct.pack("<4sI", b"RIFF", len(body)) + body)


def audio(path: Path, _: Ground) -> Any:
    pytest.importorskip("av", reason="PyAV is not installed")
    from llm_mer.features.media import read_audio

    return read_audio(path)


def frames(path: Path, _: Ground) -> Any:
    pytest.importorskip("av", reason="PyAV is not installed")
    from llm_mer.features.media import read_frames

    return read_frames(path, 5)


def shorter_than(seconds: float) -> Callable[[Path, Ground], Any]:
    def read(path: Path, _: Ground) -> Any:
        from llm_mer.features.media import check_length

        return check_length(path, seconds)

    return read


def extract(**changes: Any) -> Callable[[Path, Ground], Any]:
    """``llm-mer extract`` with log-mel features of sound only."""

    def read(path: Path, ground: Ground) -> Any:
        pytest.importorskip("av", reason="PyAV is not installed")
        pytest.importorskip("librosa", reason="librosa is not installed")
        from llm_mer.features.extract import ExtractConfig, extract_manifest

        options: dict[str, Any] = {"audio": "librosa", "vision": "none", "workers": 1, **changes}
        return extract_manifest(ExtractConfig(manifest=str(path), output=str(ground.folder / "features"), **options))

    return read


SILENT_LINE = {"id": "a", "language": "en", "audio": "clip.mp4"}
GOOD_LINE = {"id": "a", "split": "train", "text": "hello", "emotion": "joy"}
MEDIA = (
    Fault("media: no such file", lambda g: g.folder / "gone.mp4", audio, "no such file"),
    Fault("media: a folder", lambda g: g.folder, audio, "no such file"),
    Fault("media: no bytes", file("clip.mp4", b""), audio, "the file has no bytes"),
    Fault("media: text named mp4", file("clip.mp4", "this is a text\n" * 40), frames, "not a media file PyAV can open"),
    Fault(
        "media: a list of other files",
        file("clip.mp4", "ffconcat version 1.0\nfile other.mp4\n"),
        frames,
        "not a media file PyAV can open",
    ),
    Fault(
        "media: a playlist",
        file("clip.mp4", "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:1,\nother.ts\n#EXT-X-ENDLIST\n"),
        frames,
        "not a media file PyAV can open",
    ),
    Fault("media: a picture", file("clip.mp4", b"GIF89a" + bytes(300)), frames, "not a media file PyAV can open"),
    Fault("media: a URL", lambda g: Path("https://example.org/clip.mp4"), audio, "only local files are read"),
    Fault("media: mp4 cut before its index", lambda g: cut(clip(g)), frames, "not a media file PyAV can open"),
    Fault(
        "media: mp4 cut after its index, sound",
        lambda g: cut(clip(g, index_first=True), 0.8),
        audio,
        r"decoding failed \(it is cut off: \d+ bytes of at least \d+\)",
    ),
    Fault(
        "media: mp4 cut after its index, pictures",
        lambda g: cut(clip(g, index_first=True), 0.5),
        frames,
        r"decoding failed \(it is cut off: \d+ bytes of at least \d+\)",
    ),
    Fault("media: no sound", lambda g: clip(g, sound=False), audio, "it has no audio track"),
    Fault("media: no pictures", lambda g: clip(g, pictures=False), frames, "it has no video track"),
    Fault("media: a picture as sound", lambda g: clip(g, "still.mkv", sound=False), audio, "it has no audio track"),
    Fault("media: no frames", lambda g: clip(g, "clip.mkv", count=0), frames, "the video track holds no frames"),
    Fault("media: too little sound", lambda g: wav(g, np.zeros(160)), audio, r"shorter than 0\.1 s \(0\.010 s of sound\)"),
    Fault("media: longer than its reader takes", clip, shorter_than(0.5), r"longer than is taken here \(at most 0\.5 s\)"),
    Fault("media: no samples", lambda g: wav(g, np.zeros(0)), audio, "the audio track holds no samples"),
    Fault(
        "media: sound of NaN",
        lambda g: wav(g, np.where(np.arange(16_000) % 100 == 0, np.nan, 0.1)),
        audio,
        "160 of 16000 samples are NaN or infinite",
    ),
    Fault(
        "media: wav cut off", lambda g: cut(wav(g, np.full(16_000, 0.1))), audio, "cut off: 32022 bytes of at least 64044"
    ),
    Fault(
        "media: no clip of a manifest can be read",
        lambda g: (clip(g, sound=False), g.write("clips.jsonl", lines({"id": "a", "language": "en", "audio": "clip.mp4"})))[
            1
        ],
        extract(),
        r"no utterances to store; 1 files were rejected, the first: .*clip\.mp4: it has no audio track",
        "clip.mp4",
    ),
    Fault(
        "extract: a device that does not exist",
        file("clips.jsonl", lines(GOOD_LINE)),
        extract(device="foo"),
        "device is 'foo'; it must be a torch device such as cpu, cuda or cuda:0",
        "",
    ),
    Fault(
        "extract: no rate",
        file("clips.jsonl", lines(GOOD_LINE)),
        extract(audio_rate=0),
        r"audio_rate is 0; it must lie in \(0, 100\]",
        "",
    ),
    Fault(
        "extract: no worker",
        file("clips.jsonl", lines(GOOD_LINE)),
        extract(workers=0),
        "workers is 0; it must be at least 1",
        "",
    ),
    Fault(
        "extract: nothing asked for",
        file("clips.jsonl", lines(GOOD_LINE)),
        extract(audio="none"),
        "audio, vision and text are all none; there is nothing to extract",
        "",
    ),
    Fault(
        "extract: an encoder that is no folder",
        file("clips.jsonl", lines(GOOD_LINE)),
        extract(audio="./no-encoder"),
        r"encoder '\./no-encoder' cannot be loaded; give a hub name or a folder",
        "",
    ),
    Fault(
        "extract: labels of a public data set",
        lambda g: Path(f"meld:{g.folder}"),
        extract(labels=["mood"]),
        "labels: meld has its own; they are for columns of a manifest",
        "",
    ),
)


# --- manifests --------------------------------------------------------------------------------------------------------


def manifest(path: Path, _: Ground) -> Any:
    from llm_mer.data.sources.manifest import read_manifest

    return read_manifest(path)


def prepared(path: Path, ground: Ground, **options: Any) -> Any:
    """What ``finetune.py`` reads before any model."""
    from llm_mer.training.options import DataArguments
    from llm_mer.training.run_data import prepare_data

    return prepare_data(DataArguments(data=f"manifest:{path}", **options))


def entry(**changes: Any) -> Build:
    """A JSONL manifest whose second line has ``changes``."""
    first = {"id": "first", "text": "hello"}
    return file("clips.jsonl", lines(first, {k: v for k, v in {**GOOD_LINE, **changes}.items() if v != "absent"}))


MANIFESTS = (
    Fault("manifest: no such file", lambda g: g.folder / "clips.jsonl", manifest, "no such manifest"),
    Fault("manifest: another suffix", file("clips.txt", lines(GOOD_LINE)), manifest, "a manifest is a .jsonl or .csv file"),
    Fault("manifest: nothing in it", file("clips.jsonl", "\n\n"), manifest, "the manifest is empty"),
    Fault("manifest: not JSON", file("clips.jsonl", lines('{"id": ')), manifest, r"clips\.jsonl:1: not JSON: .* at column"),
    Fault("manifest: a list", file("clips.jsonl", lines(GOOD_LINE, [1])), manifest, ":2: .* is a JSON object, found list"),
    Fault("manifest: not UTF-8", file("clips.jsonl", '{"id": "é"}'.encode("latin-1")), manifest, "not UTF-8 text"),
    Fault("manifest: UTF-16", file("clips.jsonl", '{"id": "a"}'.encode("utf-16")), manifest, "not UTF-8 text"),
    Fault("manifest: no id", entry(id="absent"), manifest, ":2: no field 'id'"),
    Fault("manifest: null as id", entry(id=None), manifest, ":2: no field 'id'"),
    Fault("manifest: empty id", entry(id=""), manifest, ":2: field 'id' is ''; it must be a text or a number"),
    Fault("manifest: a list as id", entry(id=["a"]), manifest, r":2: field 'id' is \['a'\]; it must be a text"),
    Fault(
        "manifest: a URL in place of a file",
        entry(video="https://example.org/clip.mp4"),
        manifest,
        ":2: field 'video' is 'https://example.org/clip.mp4', a URL; it must be the path of a file",
    ),
    Fault("manifest: an id twice", entry(id="first"), manifest, r":2: id 'first' is already used at .*clips\.jsonl:1"),
    Fault("manifest: no modality", entry(text="absent"), manifest, ":2: give at least one of text, audio, video"),
    Fault("manifest: unknown field", entry(vidoe="a.mp4"), manifest, r":2: unknown fields \['vidoe'\]; known are id, split"),
    Fault("manifest: a number as text", entry(text=3), manifest, ":2: field 'text' is 3; it must be a string"),
    Fault("manifest: empty path", entry(audio=""), manifest, ":2: field 'audio' is ''; it must be the path of a file"),
    Fault("manifest: half a character", entry(text="\ud83d"), manifest, ":2: field 'text' .* a lone surrogate"),
    Fault("manifest: unknown split", entry(split="dev"), manifest, ":2: field 'split' is 'dev'; .* one of train, valid"),
    Fault("manifest: unknown language", entry(language="fr"), manifest, ":2: field 'language' is 'fr'; .* one of en, zh"),
    Fault("manifest: a word as turn", entry(turn="third"), manifest, ":2: field 'turn' is 'third'; it must be a whole"),
    Fault("manifest: half a turn", entry(turn=1.5), manifest, r":2: field 'turn' is 1\.5; it must be a whole number"),
    Fault("manifest: a list as speaker", entry(speaker=["A"]), manifest, r":2: field 'speaker' is \['A'\]; it must be a"),
    Fault("manifest: a number as tags", entry(tags=3), manifest, ":2: field 'tags' is 3; it must be a list of words"),
    Fault("manifest: true as label", entry(emotion=True), manifest, ":2: field 'emotion' is True; .* a word or a number"),
    Fault("manifest: no votes", entry(votes={"emotion": {"joy": 0}}), manifest, ":2: votes of 'emotion' are all 0"),
    Fault("manifest: votes below 0", entry(votes={"emotion": {"joy": -1}}), manifest, ":2: .*'joy' has -1 votes; they must"),
    Fault("manifest: shares as votes", entry(votes={"emotion": {"joy": 0.5}}), manifest, ":2: .* must be a whole number"),
    Fault(
        "manifest: votes for a label outside the set",
        entry(split="train", emotion="absent", votes={"emotion": {"bored": 2}}),
        prepared,
        r"votes: label 'bored' is not in task 'emotion'",
        "b",
    ),
    Fault(
        "manifest: a label that most did not vote for",
        entry(split="train", emotion="joy", votes={"emotion": {"joy": 1, "anger": 2}}),
        prepared,
        r"label 'joy' of 'emotion' has 1 votes, the most has anger \(2\); correct it",
        "b",
    ),
    Fault("manifest: NaN as score", entry(sentiment="nan"), manifest, ":2: field 'sentiment' is 'nan'; .* finite number"),
    Fault(
        "manifest: label outside the set",
        entry(emotion="gleeful"),
        prepared,
        "utterance 'a': label 'gleeful' is not in task 'emotion'; it knows neutral",
        "'a'",
    ),
    Fault(
        "manifest: score out of range",
        entry(sentiment=7),
        lambda path, ground: prepared(path, ground, tasks=["sentiment"]),
        r"utterance 'a': score 7.* of task 'sentiment' is not a number in \[-3\.0, 3\.0\]",
        "'a'",
    ),
    Fault(
        "manifest: no label of the task",
        entry(emotion="absent"),
        prepared,
        "no training utterance has a label 'emotion' for task 'emotion'|no split 'train'|labels in the data: none",
    ),
    Fault("manifest CSV: no id column", file("clips.csv", "text,split\nhello,train\n"), manifest, ":2: no field 'id'"),
    Fault(
        "manifest CSV: a comma too many", file("clips.csv", "id,text\na,yes, no\n"), manifest, ":2: more cells than columns"
    ),
    Fault(
        "manifest CSV: a NUL",
        file("clips.csv", "id,text\na,ye\0s\n"),
        manifest,
        ":2: field 'text' .* contains a NUL character",
    ),
    Fault("manifest CSV: not UTF-8", file("clips.csv", "id,text\na,é\n".encode("latin-1")), manifest, "not UTF-8 text"),
    Fault("manifest CSV: a head alone", file("clips.csv", "id,text\n"), manifest, "the manifest is empty"),
    Fault("manifest CSV: no number", file("clips.csv", "id,text,turn\na,b,c\n"), manifest, ":2: field 'turn' is 'c'"),
    Fault("manifest CSV: a column twice", file("clips.csv", "id,text,text\na,b,c\n"), manifest, "column 'text' .* twice"),
    Fault("manifest: a key twice", file("c.jsonl", '{"id": "a", "text": "x", "text": "y"}'), manifest, "'text' .*twice"),
    Fault("manifest: a number of 400 digits", entry(sentiment=10**399), manifest, ":2: a number of 400 digits; at most 300"),
    Fault(
        "manifest: a text of 400 digits", entry(sentiment="9" * 400), manifest, ":2: field 'sentiment' is .* finite number"
    ),
    Fault("manifest: 10 000 digits", file("c.jsonl", '{"id": ' + "9" * 10_000 + "}"), manifest, ":1: .* 10000 digits"),
    Fault("manifest: an infinite id", file("c.jsonl", '{"id": 1e999, "text": "a"}'), manifest, "'id' is inf; it must be"),
    Fault(
        "manifest: nesting 3000 deep",
        file("c.jsonl", '{"id": ' + "[" * 3000 + "]" * 3000 + "}"),
        manifest,
        ":1: brackets are nested too deeply",
    ),
    Fault("manifest: a turn beyond 64 bits", entry(turn=2**63), manifest, r":2: field 'turn' is 9\d+; .* at most 64 bits"),
    Fault("manifest: a turn below 64 bits", entry(turn="-9223372036854775808"), manifest, ":2: field 'turn' .* at most 64"),
    Fault("manifest: a turn of 1e30", entry(turn=1e30), manifest, ":2: field 'turn' is 1e.30; .* at most 64 bits"),
    Fault("manifest: a turn with underscores", entry(turn="1_000"), manifest, ":2: field 'turn' is '1_000'; it must be"),
    Fault("manifest: 20 000 fields", entry(**{f"f{i}": 1 for i in range(20_000)}), manifest, "unknown fields .* 19988 more"),
    Fault("manifest: a text of 1 MB as turn", entry(turn="x" * 2**20), manifest, r"turn.* \(1048576 char"),
    Fault("manifest: a line of 17 MB", entry(text="x" * (17 << 20)), manifest, ":2: more than 16777216 bytes"),
    Fault(
        "manifest CSV: 20 000 columns",
        file("clips.csv", ",".join(f"c{i}" for i in range(20_000)) + "\n"),
        manifest,
        "20000 columns; at most 10000",
    ),
    Fault(
        "manifest CSV: an open quote to the end",
        file("clips.csv", 'id,text\na,"open\n' + "".join(f"r{i},words\n" for i in range(41))),
        manifest,
        ":2: a quote that is opened here is not closed",
    ),
    Fault(
        "manifest CSV: an open quote up to the next one",
        file("clips.csv", 'id,text\na,"open\nb,words\nc,"whole"\n'),
        manifest,
        ":2: a quote that is opened here is not closed",
    ),
    Fault(
        "manifest CSV: a quote closed rows later",
        file("clips.csv", 'id,text\na,"open\nb,words\nc,whole"\nd,e\n'),
        manifest,
        ":2: a quote that is opened here is closed 2 lines further on",
    ),
    Fault("manifest CSV: text after a quote", file("clips.csv", 'id,text\na,"b"c\n'), manifest, ":2: not CSV: ',' expected"),
    Fault(
        "manifest CSV: commas and semicolons",
        file("clips.csv", "id;text,split\na;b,train\n"),
        manifest,
        ":1: the header has a comma and a semicolon between names",
    ),
)


# --- pickles ----------------------------------------------------------------------------------------------------------


class Call:
    """Pickles as a call."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.function, self.arguments


def pickled(name: str, content: Any) -> Build:
    return file(name, pickle.dumps(content, protocol=4))


def mmsa(path: Path, _: Ground) -> Any:
    from llm_mer.data.sources.mmsa import read_mmsa

    return list(read_mmsa(path))


def mse(path: Path, _: Ground) -> Any:
    from llm_mer.data.sources.mse_adapter import read_mse_adapter

    return list(read_mse_adapter(path))


def casia(path: Path, _: Ground) -> Any:
    from llm_mer.data.sources.casia import read_casia

    return list(read_casia(path))


def mmsa_file(**changes: Any) -> Build:
    """An unaligned MMSA pickle of two utterances with ``changes`` in its training split."""
    part = {
        "raw_text": ["GOOD", "BAD"],
        "id": ["v$_$1", "v$_$2"],
        "regression_labels": np.array([1.0, -1.0], np.float32),
        "audio": np.ones((2, 4, 3), np.float32),
        "vision": np.ones((2, 5, 2), np.float32),
        "audio_lengths": [4, 2],
        "vision_lengths": [5, 3],
    }
    part = {name: value for name, value in {**part, **changes}.items() if not isinstance(value, str) or value != "absent"}
    return pickled("unaligned_50.pkl", {"train": part})


def mse_file(name: str = "meld_train.pkl", label: Any = "joy", **changes: Any) -> Build:
    features = {"audio": np.ones((5, 4)), "video": np.ones((4, 3)), "text": "hello", "audio_len": 3, "video_len": 2}
    features = {k: v for k, v in {**features, **changes}.items() if not isinstance(v, str) or v != "absent"}
    return pickled(name, [{"features": features, "label": label}])


def ragged() -> np.ndarray:
    found = np.empty(2, dtype=object)
    found[:] = [[[1.0, 2.0], [3.0]], [[1.0]]]
    return found


REFUSED = "refused: the pickle asks for"
PICKLES = (
    Fault("pickle: runs a command", pickled("a.pkl", Call(os.system, "touch ran")), mmsa, rf"{REFUSED} \w+\.system"),
    Fault("pickle: evaluates", pickled("a.pkl", Call(builtins.eval, "1")), mmsa, rf"{REFUSED} builtins\.eval"),
    Fault("pickle: imports", pickled("a.pkl", Call(builtins.__import__, "os")), casia, rf"{REFUSED} builtins\.__import__"),
    Fault("pickle: a class of torch", pickled("meld_test.pkl", torch.zeros(2)), mse, rf"{REFUSED} torch\._utils"),
    Fault("pickle: a class of Python", pickled("a.pkl", collections.Counter("ab")), mmsa, rf"{REFUSED} collections.Counter"),
    Fault(
        "pickle: a command among the labels",
        mmsa_file(regression_labels=np.array([Call(os.system, "touch ran"), 0], dtype=object)),
        mmsa,
        rf"{REFUSED} \w+\.system",
    ),
    Fault("pickle: no such file", lambda g: g.folder / "a.pkl", mmsa, "no such file"),
    Fault("pickle: no bytes", file("a.pkl", b""), mmsa, "not a readable pickle: EOFError"),
    Fault("pickle: a text", file("a.pkl", "hello"), mmsa, "not a readable pickle"),
    Fault("pickle: cut off", lambda g: cut(mmsa_file()(g), 0.9), mmsa, "not a readable pickle"),
    Fault("MMSA: a list", pickled("a.pkl", [1, 2]), mmsa, "not an MMSA pickle: it must be a dict with train, valid, test"),
    Fault("MMSA: no split", pickled("a.pkl", {"dev": {}}), mmsa, "not an MMSA pickle: it must be a dict with train"),
    Fault("MMSA: a split that is a list", pickled("a.pkl", {"train": []}), mmsa, "train is a list; it must be a dict of"),
    Fault("MMSA: no sentences", mmsa_file(raw_text="absent"), mmsa, "train has no field raw_text; found audio"),
    Fault("MMSA: lengths of one modality", mmsa_file(vision_lengths="absent"), mmsa, "has no field vision_lengths; found"),
    Fault("MMSA: rows disagree", mmsa_file(raw_text=["A"]), mmsa, "train: field raw_text has 1 rows, id has 2"),
    Fault("MMSA: length beyond its sequence", mmsa_file(audio_lengths=[9, 2]), mmsa, "audio_lengths is 9, but audio has 4"),
    Fault("MMSA: a word as length", mmsa_file(audio_lengths=["x", 2]), mmsa, "audio_lengths is 'x'; it must be a whole"),
    Fault("MMSA: score out of range", mmsa_file(regression_labels=[9.0, 0.0]), mmsa, r"regression_labels is 9.*\[-3, 3\]"),
    Fault("MMSA: two scores a row", mmsa_file(regression_labels=[[1, 2], [3, 4]]), mmsa, "has 2 values a row; .* have one"),
    Fault("MMSA: ragged objects", mmsa_file(audio=ragged()), mmsa, "field audio is not an array of numbers"),
    Fault("MMSA: a number as field", mmsa_file(audio=3), mmsa, "field audio is a int; it must have one row per utterance"),
    Fault(
        "MMSA: flat features", mmsa_file(audio=np.ones((2, 4))), mmsa, r"audio has shape \(4,\); it must be \(steps, size"
    ),
    Fault("MMSA: token mask", mmsa_file(text_bert=np.ones((2, 2, 4))), mmsa, r"text_bert has shape \(2, 4\); .* \(3, steps"),
    Fault("MSE: a dict", pickled("meld_test.pkl", {}), mse, "not an MSE-Adapter pickle: it must be a list of"),
    Fault("MSE: no features", pickled("meld_test.pkl", [{"label": "joy"}]), mse, "entry 0 has no field features"),
    Fault("MSE: no sentence", mse_file(text="absent"), mse, "entry 0: features has no field text"),
    Fault("MSE: length beyond", mse_file(audio_len=9), mse, "entry 0: field audio_len is 9, but audio has 5 steps"),
    Fault("MSE: unknown label", mse_file(label="glee"), mse, "entry 0: field label: label 'glee' is not in task 'meld'"),
    Fault("MSE: no split in its name", mse_file("meld.pkl"), mse, "does not end in _train, _valid or _test; give the split"),
    Fault("MSE: no data set in its name", mse_file("mine_test.pkl"), mse, "does not begin with meld, cherma, iemocap"),
    Fault("MSE: an empty folder", lambda g: g.folder, mse, r"no file \*_train\.pkl"),
    Fault("CASIA: two columns", pickled("a.pkl", [["a", 1]]), casia, r"entry 0: it must be \[path, features, integer\]"),
    Fault(
        "CASIA: emotion and number disagree",
        pickled("a.pkl", [["x/angry/1-angry-wangzhe.wav", np.ones(3), 3]]),
        casia,
        "integer 3 does not agree with path .*: angry is 0",
    ),
)


# --- CSV files of data sets -------------------------------------------------------------------------------------------

MELD_HEAD = "Utterance,Speaker,Emotion,Sentiment,Dialogue_ID,Utterance_ID\n"
CPED_HEAD = "Dialogue_ID,Utterance_ID,Speaker,Sentiment,Emotion,Utterance\n"


def meld(path: Path, _: Ground) -> Any:
    from llm_mer.data.sources.meld import read_meld

    return list(read_meld(path))


def cped(path: Path, _: Ground) -> Any:
    from llm_mer.data.sources.cped import read_cped

    return list(read_cped(path))


def mosi(path: Path, _: Ground) -> Any:
    from llm_mer.data.sources.mosi import read_mosi

    return list(read_mosi(path if path.is_dir() else path.parent))


def mosi_csv(path: Path, _: Ground) -> Any:
    from llm_mer.data.sources.mosi_csv import read_mosi_csv

    return list(read_mosi_csv(path if path.is_dir() else path.parent))


def meld_file(row: str, head: str = MELD_HEAD) -> Build:
    return file("train_sent_emo.csv", head + row)


def cped_file(row: str, head: str = CPED_HEAD) -> Build:
    return file("train_split.csv", head + row)


def mosi_file(score: str = "1.5", segment: str = "1", rows: int = 1, head: str = "") -> Build:
    """A MOSI folder of one utterance; returns its index."""

    def build(ground: Ground) -> Path:
        np.savez(ground.folder / "features.npz", **{name: np.ones((rows, 3)) for name in ("text", "audio", "vision")})
        head_line = head or "id,video,segment,split,score,english,chinese"
        return ground.write("index.csv", f"{head_line}\nv_1,v,{segment},train,{score},GOOD,好\n")

    return build


def broken_npz(content: bytes) -> Build:
    def build(ground: Ground) -> Path:
        mosi_file()(ground)
        return ground.write("features.npz", content)

    return build


def mosi_csv_file(**changes: str) -> Build:
    """declare-lab's files of one training and one test utterance; returns the first that was changed."""

    def build(ground: Ground) -> Path:
        content = {"transcripts": '"a_1","YES","1","1"\n"b_2","NO","2","0"\n', "text_train": '"0"\n', "text_test": '"1"\n'}
        for name in ("text", "audio", "video"):
            content |= {f"{name}_train0": "0.5,1.5,1\n", f"{name}_test0": "0.5,1.5,0\n"}
        for name, text in {**content, **changes}.items():
            ground.write(f"{name}.csv", text)
        return ground.folder / f"{next(iter(changes))}.csv"

    return build


CSVS = (
    Fault("MELD: no such file", lambda g: g.folder, meld, r"train_sent_emo\.csv: no such file; a MELD folder holds"),
    Fault("MELD: another file", file("mine.csv", MELD_HEAD), meld, "not one of train_sent_emo.csv, dev_sent_emo.csv"),
    Fault("MELD: a column is missing", meld_file("", "Utterance,Speaker\n"), meld, "no column Emotion, .*; found Utterance"),
    Fault("MELD: no number", meld_file("hi,Joey,joy,positive,x,0\n"), meld, ":2: field Dialogue_ID is 'x'; .* whole number"),
    Fault(
        "MELD: unknown emotion", meld_file("hi,Joey,glee,positive,0,0\n"), meld, ":2: field Emotion: label 'glee' is not in"
    ),
    Fault("MELD: unknown sentiment", meld_file("hi,Joey,joy,good,0,0\n"), meld, ":2: field Sentiment is 'good'; it must be"),
    Fault("MELD: a short row", meld_file("hi,Joey\n"), meld, ":2: the row ends before column Emotion"),
    Fault("MELD: an open quote", meld_file('"hi,Joey,joy,positive,0,0\nho,Ross,joy,positive,0,1\n'), meld, ":2: a quote"),
    Fault("MELD: a column twice", meld_file("", MELD_HEAD.replace("Speaker", "Utterance")), meld, "'Utterance' .* twice"),
    Fault("MELD: a cell too many", meld_file("hi,Joey,joy,positive,0,0,9\n"), meld, ":2: more cells than columns"),
    Fault("MELD: half a turn", meld_file("hi,Joey,joy,positive,0,1e400\n"), meld, "Utterance_ID is '1e400'; .* whole"),
    Fault("CPED: no file", lambda g: g.folder, cped, r"no such file; a CPED folder holds train_split\.csv"),
    Fault("CPED: a column is missing", cped_file("", "Speaker\n"), cped, "no column Dialogue_ID, .*; found Speaker"),
    Fault(
        "CPED: another dialogue",
        cped_file("1_0,2_0_1,a,neutral,neutral,好\n"),
        cped,
        ":2: Utterance_ID '2_0_1' does not belong to",
    ),
    Fault("CPED: unknown emotion", cped_file("1_0,1_0_1,a,neutral,glee,好\n"), cped, ":2: field Emotion: label 'glee'"),
    Fault("CPED: no turn", cped_file("1_0,1_0_x,a,neutral,neutral,好\n"), cped, ":2: field Utterance_ID is 'x'; .* whole"),
    Fault(
        "CPED: not UTF-8",
        lambda g: g.write("train_split.csv", CPED_HEAD.encode() + "1_0,1_0_1,a,neutral,neutral,好\n".encode("gbk")),
        cped,
        "not UTF-8 at byte",
    ),
    Fault("MOSI: no such file", lambda g: g.folder, mosi, "no such file; a MOSI folder holds index.csv and features.npz"),
    Fault("MOSI: columns are missing", mosi_file(head="id,clip"), mosi, "no column video, .*; found id, clip"),
    Fault("MOSI: no score", mosi_file("good"), mosi, r":2: field score is 'good'; it must be a number in \[-3, 3\]"),
    Fault("MOSI: score out of range", mosi_file("30"), mosi, r":2: field score is '30'; it must be a number in \[-3, 3\]"),
    Fault("MOSI: no segment", mosi_file(segment="x"), mosi, ":2: field segment is 'x'; it must be a whole number"),
    Fault(
        "MOSI: rows disagree", mosi_file(rows=2), mosi, r"text has shape \(2, 3\); it must be \(1, size\)", "features.npz"
    ),
    Fault("MOSI: features of another kind", broken_npz(b"no archive"), mosi, "text: damaged or not an .npz file"),
    Fault(
        "MOSI: features cut off",
        lambda g: (mosi_file()(g), cut(g.folder / "features.npz"))[1],
        mosi,
        "text: damaged or not an .npz file",
    ),
    Fault("MOSI CSV: no such file", lambda g: g.folder, mosi_csv, r"transcripts\.csv: no such file; the folder holds"),
    Fault("MOSI CSV: no number", mosi_csv_file(audio_train0="0.5,x,1\n"), mosi_csv, ":1: a feature is not a number"),
    Fault("MOSI CSV: labels disagree", mosi_csv_file(video_train0="0.5,1,0\n"), mosi_csv, ":1: label 0 disagrees with 1 of"),
    Fault(
        "MOSI CSV: another label", mosi_csv_file(text_test0="0.5,1,7\n"), mosi_csv, ":1: the last column, the label, is '7'"
    ),
    Fault("MOSI CSV: an open quote", mosi_csv_file(transcripts='"a_1","YES,"1","1"\n'), mosi_csv, ":1: not CSV"),
    Fault("MOSI CSV: rows disagree", mosi_csv_file(audio_test0=""), mosi_csv, ": 0 rows, .* has more; a split's files"),
    Fault("MOSI CSV: row that is not there", mosi_csv_file(text_train='"9"\n'), mosi_csv, ":1: row 9 of transcripts.csv"),
    Fault(
        "MOSI CSV: a column too few", mosi_csv_file(transcripts='"a_1","YES","1"\n'), mosi_csv, ":1: 3 columns; .* have 4"
    ),
)


# --- stores -----------------------------------------------------------------------------------------------------------


def store_splits(path: Path, _: Ground) -> Any:
    from llm_mer.data.store import UtteranceStore

    store = UtteranceStore.open(path if path.is_dir() else path.parent)
    return [list(store.split(name)) for name in ("train", "valid", "test")]


def stored(**changes: Any) -> Callable[[Path, Ground], Any]:
    """Writing a store of two utterances, ``changes`` in the second."""

    def read(path: Path, _: Ground) -> Any:
        from llm_mer.data.store import write_store

        first, second = make_utterances("train", 2)
        return write_store([first, dataclasses.replace(second, **changes)], path)

    return read


def copied_store(change: Callable[[Path], Path]) -> Build:
    return lambda ground: change(Path(shutil.copytree(ground.store, ground.folder / "features")))


def new_store(ground: Ground) -> Path:
    return ground.folder / "features"


def resealed(entry: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A ``store.json`` that was written with these changes."""
    from llm_mer.data.store import store_info_digest

    changed = {**entry, **changes}
    return {**changed, "sha256": store_info_digest(changed)}


def flipped(name: str, place: Callable[[bytes], int]) -> Build:
    """A store with one bit of a file flipped."""

    def change(folder: Path) -> Path:
        content = bytearray((folder / name).read_bytes())
        content[place(bytes(content))] ^= 4
        (folder / name).write_bytes(content)
        return folder / name

    return copied_store(change)


STORES = (
    Fault("store: a bit of the schema", flipped("train.arrow", lambda c: 40), store_splits, "damaged: its layout is not as"),
    Fault(
        "store: a bit of a feature",
        flipped("train.arrow", lambda c: len(c) // 2),
        store_splits,
        r"damaged: utterances \d+ to \d+ \(bytes \d+ to \d+\) are not as written",
    ),
    Fault(
        "store: a digit of a score",
        flipped("valid.arrow", lambda c: c.index(b'"sentiment": ') + 13),
        store_splits,
        "damaged: utterances 0 to 31",
    ),
    Fault("store: a letter of a transcript", flipped("test.arrow", lambda c: c.index(b"kitchen")), store_splits, "damaged"),
    Fault("store: its last byte", flipped("test.arrow", lambda c: len(c) - 1), store_splits, "damaged"),
    Fault("store: a digit of its statistics", flipped("store.json", lambda c: c.index(b"0.") + 2), store_splits, "damaged"),
    Fault(
        "store: no store", lambda g: g.folder, store_splits, "no store.json here; a store is written by `llm-mer extract`"
    ),
    Fault("store: not JSON", copied_store(lambda f: cut(f / "store.json")), store_splits, "damaged or cut off, not JSON"),
    Fault(
        "store: a list",
        copied_store(lambda f: edit(f / "store.json", lambda e: [e])),
        store_splits,
        "damaged, holds list instead of an object",
    ),
    Fault(
        "store: a newer version",
        copied_store(lambda f: edit(f / "store.json", lambda e: e.update(version=9))),
        store_splits,
        "version 9, this version reads 1",
    ),
    Fault(
        "store: a field is missing",
        copied_store(lambda f: edit(f / "store.json", lambda e: {k: v for k, v in e.items() if k != "counts"})),
        store_splits,
        "damaged, a field is missing or has the wrong type: .*counts",
    ),
    Fault("store: split cut off", copied_store(lambda f: cut(f / "valid.arrow")), store_splits, "damaged or cut off"),
    Fault(
        "store: split gone",
        copied_store(lambda f: ((f / "test.arrow").unlink(), f)[1]),
        store_splits,
        "no split 'test'; it holds test, train, valid",
    ),
    Fault(
        "store: counts disagree",
        copied_store(lambda f: edit(f / "store.json", lambda e: resealed(e, counts={"train": 3})).parent / "train.arrow"),
        store_splits,
        "96 utterances of 3",
    ),
    Fault("store: an id twice", new_store, stored(id="train-000"), "utterance id 'train-000' occurs twice", ""),
    Fault(
        "store: NaN",
        new_store,
        stored(audio_features=np.full((2, 6), np.nan, np.float32)),
        "utterance 'train-001': audio_features holds NaN or infinity",
        "",
    ),
    Fault(
        "store: another size",
        new_store,
        stored(audio_features=np.ones((2, 7), np.float32)),
        "utterance 'train-001': audio_features has 7 features, the utterances before it have 6",
        "",
    ),
    Fault(
        "store: no step",
        new_store,
        stored(vision_features=np.ones((0, 5), np.float32)),
        r"utterance 'train-001': vision_features has shape \(0, 5\); it must be \(steps, size\)",
        "",
    ),
    Fault("store: unknown split", new_store, stored(split="dev"), "utterance 'train-001': split is 'dev'; it must be", ""),
    Fault(
        "store: in the place of something else",
        lambda g: g.write("features/thesis.txt", "years of work").parent,
        stored(),
        "exists and is not a store; name an empty or new folder",
    ),
)


# --- checkpoints ------------------------------------------------------------------------------------------------------


def checkpoint(path: Path, ground: Ground) -> Any:
    from llm_mer.inference.pipeline import MerPipeline

    own = ground.folder / "checkpoint"
    return MerPipeline.from_pretrained(own if own.is_dir() else path)


def another_adapter(name: str, **changes: Any) -> Build:
    """A checkpoint, older than the record of where its adapter came from, that says it is of another adapter."""

    def change(entry: Any) -> None:
        entry["model"].update(adapter=name, **changes)
        entry["adapter"] = None

    return described(change)


def described(change: Callable[[Any], Any]) -> Build:
    """A checkpoint with a change in what it says of itself."""
    return lambda ground: edit(ground.checkpoint() / "llm_mer.json", change)


ZERO_TEMPERATURE = json.dumps(
    {
        "weights_sha256": "0000",
        "data": "",
        "temperatures": [
            {"task": "emotion", "language": "en", "temperature": 0.0, "n": 1, "nll_before": 1.0, "nll_after": 1.0}
        ],
    }
)


def temperatures(content: str) -> Build:
    """A checkpoint with this as its calibration.json."""

    def build(ground: Ground) -> Path:
        path = ground.checkpoint() / "calibration.json"
        path.write_text(content, encoding="utf-8")
        return path

    return build


def damaged(name: str, share: float | None = None) -> Build:
    """A checkpoint without a file, or with the beginning of one."""

    def build(ground: Ground) -> Path:
        path = ground.checkpoint() / name
        if share is None:
            path.unlink()
            return path
        return cut(path, share)

    return build


def with_backbone(path: Path, ground: Ground) -> Any:
    from llm_mer.inference.pipeline import MerPipeline

    return MerPipeline.from_pretrained(path, backbone=str(ground.other_backbone))


def reshaped(ground: Ground) -> Path:
    from safetensors.torch import load_file, save_file

    path = ground.checkpoint() / "adapter_model.safetensors"
    state = load_file(path)
    name = next(name for name in sorted(state) if "fusion_adapter" in name)
    save_file({**state, name: torch.zeros(3, 3, 3)}, path)
    return path


def reweighted(change: Callable[[torch.Tensor], torch.Tensor], record: bool = True) -> Build:
    """A checkpoint with a change in one of its tensors; without ``record`` it is one that records no digests."""

    def build(ground: Ground) -> Path:
        from safetensors.torch import load_file, save_file

        path = ground.checkpoint() / "adapter_model.safetensors"
        state = load_file(path)
        name = next(name for name in sorted(state) if "fusion_adapter" in name)
        save_file({**state, name: change(state[name].clone())}, path, metadata={"format": "pt"})
        if not record:
            for record_file in ("checksums.json", "run_manifest.json"):
                (path.parent / record_file).unlink()
        return path

    return build


def flipped(name: str) -> Build:
    """A checkpoint with one bit of a file changed in its middle."""

    def build(ground: Ground) -> Path:
        path = ground.checkpoint() / name
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(bytes(content))
        return path

    return build


def pickled_backbone(ground: Ground) -> Path:
    """A backbone whose weights are a pickle."""
    from safetensors.torch import load_file

    folder = Path(shutil.copytree(ground.backbone, ground.folder / "backbone"))
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return folder


def backbone_alone(path: Path, ground: Ground) -> Any:
    from llm_mer.backbones.loading import load_backbone

    return load_backbone(path)


def reproduced(path: Path, ground: Ground) -> Any:
    from llm_mer.training.reproduce import ReproduceConfig, reproduce

    return reproduce(ReproduceConfig(str(path if path.is_dir() else path.parent), str(ground.folder / "again")))


CHECKPOINTS = (
    Fault("checkpoint: an empty folder", lambda g: g.folder, checkpoint, "no llm_mer.json; it is not a checkpoint"),
    Fault("checkpoint: no such folder", lambda g: g.folder / "gone", checkpoint, "no llm_mer.json; it is not a checkpoint"),
    Fault("checkpoint: description cut off", damaged("llm_mer.json", 0.5), checkpoint, "damaged or cut off, not JSON"),
    Fault(
        "checkpoint: description is no text",
        lambda g: (g.checkpoint() / "llm_mer.json", g.write("checkpoint/llm_mer.json", b"\xff\xfe\x00"))[1],
        checkpoint,
        "damaged or cut off, not JSON",
    ),
    Fault("checkpoint: description is a list", described(lambda e: [e]), checkpoint, "format None, this version reads 1"),
    Fault(
        "checkpoint: of a newer version",
        described(lambda e: e.update(format=7)),
        checkpoint,
        "format 7, this version reads 1",
    ),
    Fault("checkpoint: unknown field", described(lambda e: e.update(colour=1)), checkpoint, "damaged or edited: .*colour"),
    Fault("checkpoint: no model", described(lambda e: e.pop("model") and None), checkpoint, "damaged or edited: .*model"),
    Fault(
        "checkpoint: no adapter",
        described(lambda e: e["model"].pop("adapter") and None),
        checkpoint,
        "damaged or edited: .*adapter",
    ),
    Fault(
        "checkpoint: unknown adapter",
        another_adapter("perceiver"),
        checkpoint,
        "unknown adapter 'perceiver'; choose one of egmf",
    ),
    Fault(
        "checkpoint: two adapters named",
        described(lambda e: e["model"].update(adapter="lsgmer")),
        checkpoint,
        "damaged or edited: .*adapter is 'egmf', the model's 'lsgmer'",
    ),
    Fault(
        "checkpoint: another adapter",
        another_adapter("gated_projector", adapter_config={"feature_sizes": {"audio": 6}, "backbone_size": 48}),
        checkpoint,
        "weights do not fit the description",
        "adapter_model.safetensors",
    ),
    Fault(
        "checkpoint: unknown option of its adapter",
        described(lambda e: e["model"]["adapter_config"].update(experts=9)),
        checkpoint,
        r"adapter 'egmf' has no option \['experts'\]; it knows",
    ),
    Fault(
        "checkpoint: no processor field",
        described(lambda e: e["processor"].pop("prompts") and None),
        checkpoint,
        "damaged or edited: .*prompts",
    ),
    Fault(
        "checkpoint: a prompt that asks for nothing",
        described(lambda e: e["processor"]["prompts"][0].update(task="{mood}?")),
        checkpoint,
        r"unknown placeholders \['mood'\]",
        "checkpoint",
    ),
    Fault(
        "checkpoint: a task without labels",
        described(lambda e: e["processor"]["tasks"]["emotion"].pop("labels") and None),
        checkpoint,
        "task 'emotion' needs at least two labels, found 0",
        "checkpoint",
    ),
    Fault("checkpoint: temperatures cut off", temperatures('{"weights'), checkpoint, "damaged or cut off.*JSON"),
    Fault("checkpoint: a temperature of 0", temperatures(ZERO_TEMPERATURE), checkpoint, "damaged .* it must be above 0"),
    Fault(
        "checkpoint: temperatures of other weights",
        temperatures('{"weights_sha256": "0000", "data": "", "temperatures": []}'),
        checkpoint,
        r"fitted for weights of SHA-256 0000…, those beside it have \w+…; run `llm-mer calibrate` again",
    ),
    Fault("checkpoint: no weights", damaged("adapter_model.safetensors"), checkpoint, "no adapter_model.safetensors"),
    Fault("checkpoint: weights cut off", damaged("adapter_model.safetensors", 0.7), checkpoint, "damaged or cut off"),
    Fault(
        "checkpoint: a bit of its weights", flipped("adapter_model.safetensors"), checkpoint, r"SHA-256 \w+…, \w+… was writ"
    ),
    Fault("checkpoint: a bit of its LoRA settings", flipped("adapter_config.json"), checkpoint, "damaged"),
    Fault("checkpoint: weights of another type", reweighted(torch.Tensor.half), checkpoint, "bytes, .* were written"),
    Fault("checkpoint: weights negated", reweighted(torch.neg), checkpoint, r"SHA-256 \w+…, \w+… was written"),
    Fault(
        "checkpoint: a weight that is NaN",
        reweighted(lambda value: value.fill_(float("nan")), record=False),
        checkpoint,
        "fusion_adapter.* holds NaN or infinity",
    ),
    Fault(
        "checkpoint: a pickled backbone", pickled_backbone, backbone_alone, r"a \.bin file is a pickle, which is not opened"
    ),
    Fault("checkpoint: weights of another shape", reshaped, checkpoint, r"has shape \(3, 3, 3\), the description asks for"),
    Fault(
        "checkpoint: no LoRA settings",
        damaged("adapter_config.json"),
        checkpoint,
        "no adapter_config.json; the checkpoint is",
    ),
    Fault("checkpoint: LoRA settings cut off", damaged("adapter_config.json", 0.5), checkpoint, "damaged"),
    Fault(
        "checkpoint: no tokenizer",
        damaged("tokenizer.json"),
        checkpoint,
        "tokenizer's files are missing or damaged",
        "checkpoint",
    ),
    Fault(
        "checkpoint: tokenizer cut off",
        damaged("tokenizer.json", 0.5),
        checkpoint,
        "tokenizer's files are missing or damaged",
        "checkpoint",
    ),
    Fault(
        "checkpoint: backbone gone",
        lambda g: (shutil.rmtree(g.checkpoint() / "backbone"), g.folder / "checkpoint")[1],
        checkpoint,
        "its backbone should lie in backbone/ here or one folder up; it does not",
    ),
    Fault(
        "checkpoint: another backbone", lambda g: g.checkpoint(), with_backbone, r"fingerprint \w+…, but .* was trained on a"
    ),
    Fault(
        "checkpoint: backbone's weights cut off",
        damaged("backbone/model.safetensors", 0.5),
        checkpoint,
        "fingerprint",
        "backbone",
    ),
    Fault("run: no manifest", lambda g: g.folder, reproduced, "no run_manifest.json; name a folder that finetune.py"),
    Fault(
        "run: manifest cut off",
        lambda g: cut(g.checkpoint() / "run_manifest.json"),
        reproduced,
        "damaged or cut off, not JSON",
    ),
    Fault(
        "run: manifest of a newer version",
        lambda g: edit(g.checkpoint() / "run_manifest.json", lambda e: e.update(format=7)),
        reproduced,
        "format 7, this version reads 1",
    ),
    Fault(
        "run: not finished",
        lambda g: edit(g.checkpoint() / "run_manifest.json", lambda e: e.update(finished=None)).parent,
        reproduced,
        "the run was not finished; there is nothing to agree with",
    ),
    Fault(
        "run: its data are gone",
        lambda g: (
            edit(g.checkpoint() / "run_manifest.json", lambda e: e["options"]["data"].update(data="no/such/store")).parent
        ),
        reproduced,
        "no/such/store: no store.json here",
        "no/such/store",
    ),
)


# --- prompts ----------------------------------------------------------------------------------------------------------

LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
PROMPT = {
    "language": "en",
    "kind": "classification",
    "answer": "word",
    "prefix": "Listen: ",
    "task": "{transcript} Which of {labels}? ",
}


def prompts(path: Path, _: Ground) -> Any:
    from llm_mer.prompting.templates import load_prompts

    return load_prompts([str(path)])


def rendered(task: str) -> Callable[[Path, Ground], Any]:
    """Choosing and filling in the template for a task in English."""

    def read(path: Path, _: Ground) -> Any:
        from llm_mer.prompting.rendering import render
        from llm_mer.prompting.tasks import get_task
        from llm_mer.prompting.templates import load_prompts, select_prompt

        return render(select_prompt(load_prompts([str(path)]), get_task(task), "en"), get_task(task), "hello")

    return read


def prompt_file(**changes: Any) -> Build:
    content = {name: value for name, value in {**PROMPT, **changes}.items() if value is not None}
    return file("mine.yaml", yaml.safe_dump(content, allow_unicode=True))


SCORE: dict[str, Any] = {"kind": "regression", "answer": "number", "task": "{transcript} From {low} to {high}: "}
PROMPTS = (
    Fault("prompt: no such file", lambda g: g.folder / "mine.yaml", prompts, "no such file"),
    Fault("prompt: no such style", lambda g: Path("poetic"), prompts, "'poetic' is no file, folder or style; styles are"),
    Fault("prompt: an empty folder", lambda g: g.folder, prompts, "is no file, folder or style; styles are"),
    Fault("prompt: not YAML", file("mine.yaml", "task: [a\nkind: b"), prompts, "not YAML"),
    Fault("prompt: not UTF-8", file("mine.yaml", "task: é".encode("latin-1")), prompts, "not UTF-8 text"),
    Fault("prompt: a key twice", file("mine.yaml", "task: a\nkind: b\ntask: c"), prompts, "line 3: key 'task' .* twice"),
    Fault("prompt: aliases without end", file("mine.yaml", LAUGHS), prompts, "aliases expand it to more than 100000 values"),
    Fault("prompt: nested", file("mine.yaml", "[" * 5000), prompts, "nested|not YAML"),
    Fault("prompt: a class", file("mine.yaml", "task: !!python/name:os.system"), prompts, "not YAML: could not determine"),
    Fault("prompt: a list", file("mine.yaml", "- task"), prompts, "a prompt file is a mapping of keys to values"),
    Fault("prompt: unknown key", prompt_file(tone="kind"), prompts, r"unknown keys \['tone'\]; a prompt knows \['answer'"),
    Fault("prompt: no task", prompt_file(task=None), prompts, r"missing keys \['task'\]"),
    Fault("prompt: empty task", prompt_file(task="  "), prompts, "task is empty; it holds the question"),
    Fault(
        "prompt: unknown placeholder", prompt_file(task="{mood}?"), prompts, r"unknown placeholders \['mood'\]; known are"
    ),
    Fault(
        "prompt: a placeholder in what stands in",
        prompt_file(missing_transcript="{speaker} said nothing"),
        prompts,
        "missing_transcript: {speaker} would stand there as it is; it holds words alone",
    ),
    Fault("prompt: an open brace", prompt_file(task="{labels"), prompts, "write {{ and }} for literal braces"),
    Fault("prompt: a format", prompt_file(task="{labels:>9}"), prompts, r"placeholders \['labels'\] carry a format"),
    Fault("prompt: another language", prompt_file(language="fr"), prompts, "language is 'fr'; it must be one of en, zh"),
    Fault("prompt: another kind", prompt_file(kind="rhyme"), prompts, "kind is 'rhyme'; it must be classification or"),
    Fault("prompt: another answer", prompt_file(answer="song"), prompts, "answer is 'song'; it must be one of word, index"),
    Fault(
        "prompt: a number for classes",
        prompt_file(answer="number"),
        prompts,
        "a classification prompt cannot ask for 'number'",
    ),
    Fault(
        "prompt: a word for a score",
        prompt_file(**SCORE | {"answer": "word"}),
        prompts,
        "a regression prompt cannot ask for",
    ),
    Fault("prompt: numbers nobody explains", prompt_file(answer="index"), prompts, "an index answer needs {indexed_labels}"),
    Fault(
        "prompt: context without turns", prompt_file(prefix="{context}"), prompts, "{context} and context_turns .* belong"
    ),
    Fault("prompt: a word as turns", prompt_file(context_turns="two"), prompts, "context_turns is 'two'; .* a whole number"),
    Fault(
        "prompt: fewer than no turns", prompt_file(context_turns=-1), prompts, "context_turns is -1; it must be at least 0"
    ),
    Fault(
        "prompt: labels of a score",
        prompt_file(**SCORE | {"task": "Which of {labels}?"}),
        rendered("sentiment"),
        "{labels} has no meaning for task 'sentiment'",
        "mine",
    ),
    Fault(
        "prompt: a range of classes",
        prompt_file(task="From {low}?"),
        rendered("emotion"),
        "{low} has no meaning for task 'emotion'",
        "mine",
    ),
    Fault(
        "prompt: none for the language",
        prompt_file(language="zh"),
        rendered("emotion"),
        r"no prompt for classification task 'emotion' in language 'en'; loaded are: mine \(zh, classification\)",
        "mine",
    ),
)


# --- tasks ------------------------------------------------------------------------------------------------------------

JOY, GRIEF = {"name": "joy", "en": "joy", "zh": "高兴"}, {"name": "grief", "en": "grief", "zh": "悲痛"}


def task(path: Path, _: Ground) -> Any:
    from llm_mer.prompting.tasks import get_task

    return get_task(str(path))


def task_file(**changes: Any) -> Build:
    content = {"kind": "classification", "labels": [JOY, GRIEF], **changes}
    return file("mine.yaml", yaml.safe_dump({"mood": content}, allow_unicode=True))


def score_file(**changes: Any) -> Build:
    return file("mine.yaml", yaml.safe_dump({"mood": {"kind": "regression", "range": [-1, 1], **changes}}))


TASKS = (
    Fault("task: unknown name", lambda g: Path("mood"), task, "unknown task 'mood'; built in are .*, or name a .yaml file"),
    Fault("task: no such file", lambda g: g.folder / "mine.yaml", task, "no such task file"),
    Fault("task: not YAML", file("mine.yaml", "mood: [\nkind: b"), task, "not YAML"),
    Fault("task: not UTF-8", file("mine.yaml", "mood: é".encode("latin-1")), task, "not UTF-8 text"),
    Fault("task: two in a file", file("mine.yaml", "a: {}\nb: {}"), task, "a task file holds exactly one task"),
    Fault("task: aliases without end", file("mine.yaml", LAUGHS), task, "aliases expand it to more than 100000 values"),
    Fault(
        "task: a label named no",
        file("mine.yaml", "mood: {kind: classification, labels: [{name: no, en: nay}, {name: yes, en: yea}]}"),
        task,
        "False is read as a bool; put words in quotes",
    ),
    Fault("task: a word named on", task_file(labels=[JOY, {**GRIEF, "en": True}]), task, "True is read as a bool"),
    Fault("task: an octal label", task_file(labels=[JOY, {**GRIEF, "name": 8}]), task, "8 is read as a int"),
    Fault("task: an alias of yes", task_file(aliases={True: "joy"}), task, "aliases: True is read as a bool"),
    Fault(
        "task: a date ignored",
        file(
            "mine.yaml", "mood: {ignored: [2020-01-01], kind: classification, labels: [{name: a, en: a}, {name: b, en: b}]}"
        ),
        task,
        "ignored: datetime.* is read as a date",
    ),
    Fault("task: a list", file("mine.yaml", "mood: [a]"), task, r"task 'mood' is \['a'\]; it must be a mapping"),
    Fault("task: unknown key", task_file(colour=1), task, r"task 'mood' has unknown keys \['colour'\]; known are"),
    Fault("task: no kind", task_file(kind=None), task, "has kind None; it must be classification or regression"),
    Fault("task: unknown metrics", task_file(metrics="bleu"), task, "has metrics 'bleu'; a classification task has"),
    Fault("task: a number as labels", task_file(labels=3), task, "has labels 3; it must be a list of"),
    Fault("task: one label", task_file(labels=[JOY]), task, "needs at least two labels, found 1"),
    Fault("task: a label without a name", task_file(labels=[JOY, {"en": "x"}]), task, r"has label {'en': 'x'}; a label is"),
    Fault("task: a label twice", task_file(labels=[JOY, JOY]), task, r"names a label twice: \['joy', 'joy'\]"),
    Fault(
        "task: a word is missing",
        task_file(labels=[JOY, {"name": "b", "en": "b"}]),
        task,
        "label 'b' of task 'mood' lacks a",
    ),
    Fault("task: a word twice", task_file(labels=[JOY, {**GRIEF, "en": "Joy"}]), task, "words 'joy' and 'Joy' of"),
    Fault("task: a blank word", task_file(labels=[JOY, {**GRIEF, "en": " "}]), task, "' ' is blank, has white space around"),
    Fault("task: space before a word", task_file(labels=[JOY, {**GRIEF, "en": " sad"}]), task, "' sad' is blank, has white"),
    Fault("task: a line end in a word", task_file(labels=[JOY, {**GRIEF, "en": "s\nd"}]), task, "a character with no glyph"),
    Fault("task: an empty name", task_file(labels=[JOY, {**GRIEF, "name": ""}]), task, "'' is blank"),
    Fault(
        "task: labels that differ in width",
        task_file(labels=[JOY, {**GRIEF, "name": "ｊｏｙ"}]),
        task,
        "labels 'joy' and 'ｊｏｙ', which differ in letter case or form alone",
    ),
    Fault(
        "task: words that differ in their accents' form",
        task_file(labels=[{**JOY, "en": "café"}, {**GRIEF, "en": "cafe\u0301"}]),
        task,
        "of language 'en', which differ in letter case or form alone",
    ),
    Fault(
        "task: a label's name is another's word",
        task_file(labels=[{**JOY, "en": "grief"}, {**GRIEF, "en": "sorrow"}]),
        task,
        "'grief' in the data would be two labels: it is the name of 'grief' and the en word of 'joy'",
    ),
    Fault(
        "task: a word is another's in the other language",
        task_file(labels=[{**JOY, "zh": "grim"}, {**GRIEF, "en": "grim"}]),
        task,
        "'grim' in the data would be two labels: it is the zh word of 'joy' and the en word of 'grief'",
    ),
    Fault(
        "task: an alias is a label",
        task_file(aliases={"grief": "joy"}),
        task,
        "'grief' in the data would be two labels: it is the name of 'grief' and an alias of 'joy'",
    ),
    Fault("task: an alias with space around it", task_file(aliases={" glee": "joy"}), task, "' glee' is blank, has white"),
    Fault(
        "task: another language's words",
        task_file(labels=[{"name": "a", "fr": "x"}, {"name": "b", "fr": "y"}]),
        task,
        "has words in languages 'fr'; a label is",
    ),
    Fault("task: labels without a word", task_file(labels=[{"name": "a"}, {"name": "b"}]), task, "in languages none"),
    Fault("task: classes with a range", task_file(range=[0, 1]), task, "only a regression task has range"),
    Fault("task: a score with labels", score_file(labels=[JOY, GRIEF]), task, "only a classification task has labels"),
    Fault("task: no text as target", task_file(target=["emotion"]), task, r"target: \['emotion'\] is read as a list"),
    Fault("task: a blank target", task_file(target=""), task, "target: '' is blank"),
    Fault("task: a name read as false", file("mine.yaml", "no: {kind: regression}"), task, "False is read as a bool"),
    Fault("task: a text as range", score_file(range="05", decimals=0), task, "needs range: .* found '05'"),
    Fault("task: yes and no as range", score_file(range=[False, True]), task, r"needs range: .* found \[False, True\]"),
    Fault(
        "task: more scores than can be answered",
        score_file(range=[-1e6, 1e6]),
        task,
        "with 1 decimals has 20000001 answers; at most 10001 can be scored",
    ),
    Fault("task: more digits than a float", score_file(range=[1e16, 1e16 + 4], decimals=0), task, "more digits than a"),
    Fault("task: a list of aliases", task_file(aliases=["a"]), task, r"has aliases \['a'\]; it must be a mapping"),
    Fault("task: an alias of nothing", task_file(aliases={"x": "glee"}), task, r"aliases of unknown labels \['glee'\]"),
    Fault("task: asked and ignored", task_file(ignored=["joy"]), task, r"both asks about and ignores \['joy'\]"),
    Fault("task: no range", score_file(range=None), task, r"needs range: \[low, high\] with low < high, found None"),
    Fault("task: range turned round", score_file(range=[1, -1]), task, r"needs range: .* found \[1, -1\]"),
    Fault("task: infinite range", score_file(range=[-1, float("inf")]), task, r"needs range: .* found \[-1, inf\]"),
    Fault("task: MOSI's metrics", score_file(metrics="mosi"), task, r"metrics 'mosi' and range \[-1, 1\]; they are"),
    Fault("task: too many decimals", score_file(decimals=9), task, "has decimals 9; it must be a whole number from 0 to 4"),
)


# --- options ----------------------------------------------------------------------------------------------------------


def options(path: Path, ground: Ground) -> Any:
    """``finetune.py --config FILE`` up to the first step, without a language model."""
    from llm_mer.training.parsing import parse_arguments
    from llm_mer.training.setup import build_trainer

    argv = training_options(ground.store, "none", ground.folder / "run", tasks=None, lora_r=None, learning_rate=None)
    for name in (yaml.safe_load(path.read_text()) if path.suffix == ".yaml" and path.is_file() else None) or ():
        if f"--{name}" in argv:  # the command line would override the file
            place = argv.index(f"--{name}")
            del argv[place : place + 2]
    return build_trainer(parse_arguments([*argv, "--config", str(path)]))


def config(**content: Any) -> Build:
    return file("run.yaml", yaml.safe_dump(content))


def cli(*argv: str) -> Callable[[Path, Ground], Any]:
    """A subcommand of ``llm-mer``; ``{}`` stands for the input."""

    def read(path: Path, _: Ground) -> Any:
        from llm_mer.cli.main import COMMANDS
        from llm_mer.cli.options import parse

        command = COMMANDS[argv[0]].load()
        given = [word.replace("{}", str(path)) for word in argv[1:]]
        return command.run(parse(command.Options, given, argv[0]))

    return read


def folder(ground: Ground) -> Path:
    return ground.folder


def demo(*argv: str) -> Callable[[Path, Ground], Any]:
    """``llm-mer demo`` with options that are refused before anything is loaded."""
    return cli("demo", "--checkpoint", "{}", *argv)


def answered(path: Path, ground: Ground) -> Any:
    """``infer.py --features FILE`` up to its answer."""
    from llm_mer.inference.inputs import InferConfig, single_utterance

    return single_utterance(InferConfig(features=str(path)))


def arrays(**content: np.ndarray) -> Build:
    def build(ground: Ground) -> Path:
        np.savez(ground.folder / "clip.npz", **content)
        return ground.folder / "clip.npz"

    return build


OPTIONS = (
    Fault("infer: features of another kind", file("clip.npz", "1 2 3"), answered, "not an .npz of numeric arrays"),
    Fault("infer: another name", arrays(sound=np.ones((2, 6))), answered, r"holds \['sound'\]; it may hold text, audio"),
    Fault("infer: objects", arrays(audio=np.array([[None]])), answered, "not an .npz of numeric arrays"),
    Fault("infer: NaN", arrays(audio=np.full((2, 6), np.nan)), answered, "audio holds NaN or infinity in float32"),
    Fault("options: no such file", lambda g: g.folder / "run.yaml", options, "--config: no such file"),
    Fault("options: a folder", lambda g: g.folder, options, "is a folder; name a YAML file"),
    Fault("options: unknown option", config(colour="red"), options, r"Unknown arguments from config file: \['--colour'", ""),
    Fault("options: a choice", config(chat="always"), options, "chat: 'always' is not one of auto, never", ""),
    Fault("options: a mapping as list", config(tasks={"a": 1}), options, "tasks: {'a': 1}; it must be a list of texts", ""),
    Fault("options: unknown task", config(tasks=["mood"]), options, "unknown task 'mood'; built in are", ""),
    Fault("options: a word as number", config(lora_r="eight"), options, "--lora_r.*: invalid int value: 'eight'", ""),
    Fault("options: a list as number", config(learning_rate=[1]), options, r"learning_rate: \[1\] is not a number", ""),
    Fault(
        "options: a word as switch", config(use_audio="perhaps"), options, "--use_audio.*: .*got perhaps but expected", ""
    ),
    Fault("options: too small", config(context_window=0), options, "context_window: 0; it must be at least 1", ""),
    Fault(
        "options: unknown adapter", config(adapter="perceiver"), options, "unknown adapter 'perceiver'; choose one of", ""
    ),
    Fault("options: a weight of nothing", config(loss_weights=["apc=1"]), options, r"has no loss \['apc'\]; it has", ""),
    Fault("options: no weight", config(loss_weights=["ce"]), options, "loss_weights: 'ce' is not NAME=NUMBER", ""),
    Fault("options: a seed twice", config(seeds=[1, 1]), options, r"seeds: \[1, 1\] names a seed twice", ""),
    Fault("options: no such backbone", config(backbone="./gone"), options, r"backbone: no such folder './gone'", ""),
    Fault(
        "options: a rate that is NaN", config(learning_rate=float("nan")), options, "learning_rate: nan; it must be fini", ""
    ),
    Fault("options: a key twice", file("run.yaml", "seed: 1\nseed: 2\n"), options, "line 2: key 'seed' occurs twice"),
    Fault("options: no such split", config(train_split="dev"), options, "no split 'dev'; it holds test, train, valid", ""),
    Fault(
        "evaluate: a condition of nothing",
        lambda g: g.checkpoint(),
        lambda path, ground: cli(
            "evaluate", "--checkpoint", "{}", "--data", str(ground.store), "--conditions", "shuffle:smell"
        )(path, ground),
        "condition 'shuffle:smell': the checkpoint reads text, audio, vision, not smell",
        "",
    ),
    Fault(
        "evaluate: a task twice",
        lambda g: g.checkpoint(),
        lambda path, ground: cli(
            "evaluate", "--checkpoint", "{}", "--data", str(ground.store), "--tasks", "emotion", "emotion"
        )(path, ground),
        r"tasks: \['emotion', 'emotion'\] names a task twice",
        "",
    ),
    Fault(
        "evaluate: seeds that are not there",
        lambda g: g.checkpoint(),
        cli("evaluate", "--checkpoint", "{}", "--data", "unread", "--seeds", "1"),
        "--seeds 1: .* holds no checkpoint seed-1; it holds seeds none",
    ),
    Fault("report: no evaluation", lambda g: g.folder, cli("report", "--evaluations", "{}"), "no evaluation.json"),
    Fault(
        "report: evaluation cut off",
        lambda g: g.write("evaluation/evaluation.json", '{"name": "x"'),
        lambda path, ground: cli("report", "--evaluations", str(path.parent))(path, ground),
        "cannot be read",
    ),
    Fault(
        "report: one probability given twice",
        evaluated('{"condition": "as is", "id": "a", "task": "emotion", "language": "en", "value": "x", "value": "y"}'),
        read_report,
        "predictions.jsonl:1: damaged: key 'value' occurs twice",
    ),
    Fault(
        "report: a probability that is NaN",
        evaluated('{"condition": "as is", "id": "a", "task": "emotion", "language": "en", "value": 1, "mean": NaN}'),
        read_report,
        "predictions.jsonl:1: damaged: NaN is not JSON",
    ),
    Fault(
        "report: predictions nested without end",
        evaluated('{"condition": ' + "[" * 100_000),
        read_report,
        "predictions.jsonl:1: damaged: brackets are nested too deeply",
    ),
    Fault(
        "report: answers with an id given twice",
        file("answers.jsonl", '{"id": "a", "id": "b", "value": "happy"}\n'),
        read_answers,
        "answers.jsonl:1: key 'id' occurs twice",
    ),
    Fault(
        "report: answers that are NaN",
        file("answers.jsonl", '{"id": "a", "value": NaN}\n'),
        read_answers,
        "answers.jsonl:1: NaN is not JSON",
    ),
    Fault(
        "report: answers that are not UTF-8",
        file("answers.jsonl", b'{"id": "\xff", "value": 1}\n'),
        read_answers,
        "answers.jsonl:1: not UTF-8 text",
    ),
    Fault(
        "report: a trajectory's epoch given twice",
        file("trajectories.jsonl", '{"epoch": 0, "epoch": 1, "name": "x", "points": [[0, 0]]}\n'),
        read_trajectories,
        "trajectories.jsonl:1: key 'epoch' occurs twice",
    ),
    Fault(
        "report: a trajectory of words",
        file("trajectories.jsonl", '{"epoch": 0, "name": "x", "points": [["a", "b"]]}\n'),
        read_trajectories,
        "trajectories.jsonl:1: not a line that a training writes",
    ),
    Fault(
        "infer: an answer file with an id given twice",
        file("answers.jsonl", '{"id": "a", "id": "b", "value": "happy"}\n'),
        continue_answers,
        "answers.jsonl:1: not a line of infer.py .key 'id' occurs twice",
    ),
    Fault("demo: a port that is none", folder, demo("--port", "70000"), "a number from 0 to 65535", "--port 70000"),
    Fault("demo: a name as address", folder, demo("--host", "evil.example"), "an address", "--host evil.example"),
    Fault("demo: every address, by no name", folder, demo("--host", "0.0.0.0"), "--allowed_hosts", "--host 0.0.0.0"),
    Fault("demo: every name", folder, demo("--allowed_hosts", "*"), "without port or \\*", "--allowed_hosts '*'"),
    Fault(
        "demo: a name with its port",
        folder,
        demo("--allowed_hosts", "mymachine:7860"),
        "without port",
        "--allowed_hosts 'mymachine:7860'",
    ),
    Fault("demo: clips of no length", folder, demo("--max_seconds", "0"), "above 0", "--max_seconds 0"),
    Fault("demo: clips longer than are read", folder, demo("--max_seconds", "nan"), "at most 600", "--max_seconds"),
    Fault("demo: uploads of no size", folder, demo("--max_upload_mb", "0"), "at least 1", "--max_upload_mb 0"),
    Fault("info: an empty folder", lambda g: g.folder, cli("info", "--path", "{}"), "neither a checkpoint"),
    Fault(
        "prepare: an option the format lacks",
        lambda g: g.folder,
        cli("prepare", "--name", "cped", "--path", "{}", "--output", "{}/out", "--media", "x"),
        "media: the format cped has no such option",
        "",
    ),
    Fault(
        "compare: no such file",
        lambda g: g.folder / "run.yaml",
        cli("compare", "--config", "{}"),
        "no such file",
    ),
    Fault(
        "convert: an empty folder",
        lambda g: g.folder,
        cli("convert-chatglm3", "--source", "{}", "--target", "{}/out"),
        "config.json",
    ),
)

FAULTS: tuple[Fault, ...] = (
    *MEDIA,
    *MANIFESTS,
    *PICKLES,
    *CSVS,
    *STORES,
    *CHECKPOINTS,
    *PROMPTS,
    *TASKS,
    *OPTIONS,
)
