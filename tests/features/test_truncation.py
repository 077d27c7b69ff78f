"""A file that is cut off is found in every container that says how long it is; a whole one is never taken for cut."""

from __future__ import annotations

import struct
from pathlib import Path

import av
import numpy as np
import pytest
from helpers.media_files import tone

from llm_mer.features.media import MediaError, read_audio, read_frames
from llm_mer.features.truncation import find_missing_bytes

SECONDS, FPS = 1.6, 25
SHARE = 0.6
FORMATS: dict[str, tuple[str, str | None, dict[str, str]]] = {
    "clip.mp4": ("aac", "libx264", {}),
    "index_first.mp4": ("aac", "libx264", {"movflags": "faststart"}),
    "fragments.mp4": ("aac", "libx264", {"movflags": "frag_keyframe+empty_moov"}),
    "clip.mov": ("aac", "libx264", {"movflags": "faststart"}),
    "clip.m4a": ("aac", None, {"movflags": "faststart"}),
    "clip.mkv": ("aac", "libx264", {}),
    "clip.webm": ("libopus", "libvpx", {}),
    "clip.avi": ("libmp3lame", "mpeg4", {}),
    "clip.flv": ("aac", "flv1", {}),
    "clip.mp3": ("libmp3lame", None, {}),
    "clip.wav": ("pcm_s16le", None, {}),
    "long_header.wav": ("pcm_s16le", None, {"rf64": "always"}),
    "clip.w64": ("pcm_s16le", None, {}),
    "clip.flac": ("flac", None, {}),
    "clip.ogg": ("libopus", None, {}),
    "clip.aiff": ("pcm_s16be", None, {}),
    "clip.au": ("pcm_s16be", None, {}),
    "clip.caf": ("pcm_s16be", None, {}),
}
SILENT_ABOUT_LENGTH: dict[str, tuple[str, str | None, dict[str, str]]] = {
    "raw.ac3": ("ac3", None, {}),
    "raw.ts": ("aac", "libx264", {}),
    "plain.mp3": ("libmp3lame", None, {"write_xing": "0"}),
    "live.webm": ("libopus", "libvpx", {"live": "1"}),
}


def write(path: Path, sound: str, pictures: str | None, options: dict[str, str], picture_seconds: float = SECONDS) -> Path:
    """Noise and a tone, and pictures of noise, so that the bytes lie evenly over the time."""
    random = np.random.default_rng(0)
    rate = 48_000
    samples = tone(220, SECONDS, rate, 0.3) + random.normal(0, 0.05, int(SECONDS * rate))
    with av.open(str(path), "w", options=options) as container:
        audio = container.add_stream(sound, rate=rate, layout="mono")
        video = None if pictures is None else container.add_stream(pictures, rate=FPS)
        if video is not None:
            video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
            for _ in range(round(picture_seconds * FPS)):
                grey = random.integers(0, 256, (6, 8, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
                container.mux(video.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
        for start in range(0, len(samples), 1024):
            block = np.round(samples[None, start : start + 1024] * 32767).astype(np.int16)
            frame = av.AudioFrame.from_ndarray(block, format="s16", layout="mono")
            frame.sample_rate = rate
            container.mux(audio.encode(frame))
        container.mux(audio.encode())
        if video is not None:
            container.mux(video.encode())
    return path


def cut(path: Path, share: float = SHARE) -> Path:
    shortened = path.with_name(f"cut_{path.name}")
    shortened.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    return shortened


def seconds_of(path: Path, with_pictures: bool) -> list[float]:
    return [len(read_audio(path)) / 16_000, *([len(read_frames(path, 10).pixels) / 10] if with_pictures else [])]


@pytest.mark.parametrize("name", [*FORMATS, *SILENT_ABOUT_LENGTH])
def test_a_whole_file_is_read_to_its_end(tmp_path: Path, name: str) -> None:
    codecs = {**FORMATS, **SILENT_ABOUT_LENGTH}[name]
    found = seconds_of(write(tmp_path / name, *codecs), codecs[1] is not None)
    assert found == pytest.approx([SECONDS] * len(found), abs=0.15)


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_cut_off_is_refused_and_not_read_as_a_shorter_clip(tmp_path: Path, name: str) -> None:
    sound, pictures, options = FORMATS[name]
    path = cut(write(tmp_path / name, sound, pictures, options))
    for read in (read_audio, *([lambda p: read_frames(p, 10)] if pictures else [])):
        with pytest.raises(MediaError) as told:
            read(path)
        assert told.value.reason in ("corrupt", "not_media")


@pytest.mark.parametrize("name", SILENT_ABOUT_LENGTH)
def test_of_these_formats_the_docs_say_that_a_cut_cannot_be_seen(tmp_path: Path, name: str) -> None:
    sound, pictures, options = SILENT_ABOUT_LENGTH[name]
    path = cut(write(tmp_path / name, sound, pictures, options))
    assert len(read_audio(path)) / 16_000 < 0.8 * SECONDS


@pytest.mark.parametrize("name", ["clip.mkv", "clip.webm", "clip.mp4", "clip.avi"])
@pytest.mark.parametrize("picture_seconds", [0.6, 2.6])
def test_sound_and_pictures_of_unequal_length_are_no_cut(tmp_path: Path, name: str, picture_seconds: float) -> None:
    path = write(tmp_path / name, *FORMATS[name], picture_seconds=picture_seconds)
    sound, pictures = seconds_of(path, True)
    assert (sound, pictures) == (pytest.approx(SECONDS, abs=0.15), pytest.approx(picture_seconds, abs=0.15))


def test_slow_pictures_whose_last_one_has_no_length_are_no_cut(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "slow.mkv"), "w") as container:
        stream = container.add_stream("mjpeg", rate=1)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuvj420p"
        for number in range(4):
            grey = np.full((32, 32, 3), 60 * number, dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
        container.mux(stream.encode())
    assert len(read_frames(tmp_path / "slow.mkv", 2).pixels) == 8


def test_tags_before_the_sound_of_an_mp3_hide_no_cut(tmp_path: Path) -> None:
    path = write(tmp_path / "clip.mp3", "libmp3lame", None, {})
    comment = b"TXXX" + (5000).to_bytes(4, "big") + b"\0\0" + b"\0" * 5000
    size = len(comment)
    tag = b"ID3\x03\0\0" + bytes(size >> shift & 0x7F for shift in (21, 14, 7, 0)) + comment
    path.write_bytes(tag + path.read_bytes())
    assert len(read_audio(path)) / 16_000 == pytest.approx(SECONDS, abs=0.1)
    with pytest.raises(MediaError, match=r"it is cut off: \d\.\d of 1\.6 s"):
        read_audio(cut(path, 0.7))


def test_sizes_in_heads_are_read_as_their_formats_have_them(tmp_path: Path) -> None:
    """Each head declares 1000 bytes in all; the file has them, or lacks the last ten."""
    sphere = b"NIST_1A\n   1024\nsample_count -i 100\nsample_n_bytes -i 2\nchannel_count -i 1\nend_head\n"
    heads = {
        "riff": (b"RIFF" + struct.pack("<I", 992) + b"WAVE", 1000),
        "aiff": (b"FORM" + struct.pack(">I", 992) + b"AIFF", 1000),
        "au": (b".snd" + struct.pack(">II", 24, 976), 1000),
        "caf": (b"caff\0\1\0\0" + b"desc" + struct.pack(">q", 32) + b"\0" * 32 + b"data" + struct.pack(">q", 936), 1000),
        "mp4": (struct.pack(">I", 16) + b"ftypisom\0\0\0\0" + struct.pack(">I", 984) + b"mdat", 1000),
        "mp4, 64 bits": (struct.pack(">I", 16) + b"ftypisom\0\0\0\0" + struct.pack(">I4sQ", 1, b"mdat", 984), 1000),
        "sphere": (sphere, 1224),
    }
    for name, (head, size) in heads.items():
        path = tmp_path / name
        path.write_bytes(head.ljust(size, b"\0"))
        assert find_missing_bytes(path) is None, name
        path.write_bytes(path.read_bytes()[:-10])
        assert find_missing_bytes(path) == f"it is cut off: {size - 10} bytes of at least {size}", name


@pytest.mark.parametrize(
    "head",
    [
        b"RIFF\xff\xff\xff\xffWAVE",
        b".snd\0\0\0\x18\xff\xff\xff\xff",
        b"caff\0\1\0\0data" + b"\xff" * 8,
        b"\0\0\0\x10ftypisom\0\0\0\0\0\0\0\0mdat",
        b"\0\0\0\x10ftypisom\0\0\0\0 what somebody wrote behind the last box of a film",
        b"NIST_1A\n   1024\nsample_count -i 99999\nend_head\n",
    ],
)
def test_a_length_that_was_not_known_says_nothing(tmp_path: Path, head: bytes) -> None:
    path = tmp_path / "live"
    path.write_bytes(head.ljust(200, b"\0"))
    assert find_missing_bytes(path) is None
