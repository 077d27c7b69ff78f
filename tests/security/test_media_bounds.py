"""A clip made to take memory, or to have another file read, is refused in one line before it does."""

from __future__ import annotations

import struct
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from conftest import ROOT, run_environment
from helpers.media_files import clip, write_mp4, write_wav

from llm_mer.features import media
from llm_mer.features.media import MediaError, read_audio, read_frames
from llm_mer.storage.urls import is_url

MEMORY = 3 << 30
"""Bytes of address space for a process that reads a clip, of which about 1.5 GiB are the libraries'."""


def texture(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 64, 64, 3), dtype=np.uint8)


def read_in_bounded_memory(path: Path, reader: str) -> str:
    """What reading a clip says in a process of its own that may not have more than :data:`MEMORY`."""
    program = f"""
import resource
resource.setrlimit(resource.RLIMIT_AS, ({MEMORY}, {MEMORY}))
from llm_mer.features.media import MediaError, read_audio, read_frames
try:
    {reader}
except MediaError as error:
    print(error.reason)
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=run_environment(PYTHONPATH=str(ROOT), OPENBLAS_NUM_THREADS="1"),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-800:]
    return done.stdout.strip()


def test_a_gap_in_the_clock_is_too_long_before_it_is_filled(tmp_path: Path) -> None:
    path = write_mp4(tmp_path / "gap.mkv", texture(2), times=[0.0, 4e8])
    assert read_in_bounded_memory(path, f"read_frames({str(path)!r}, 25.0)") == "too_long"


@pytest.mark.parametrize("name", ["list.ffconcat", "list.mp4", "list.txt"])
@pytest.mark.parametrize("head", ["ffconcat version 1.0\nfile secret.mp4\n", "ffconcat version 1.0\nfile 'secret.mp4'\n"])
def test_a_list_of_files_reads_none_of_them(tmp_path: Path, name: str, head: str) -> None:
    clip(tmp_path / "secret.mp4", 1)
    path = tmp_path / name
    path.write_text(head)
    for read in (lambda: read_frames(path, 5.0), lambda: read_audio(path)):
        with pytest.raises(MediaError) as caught:
            read()
        assert caught.value.reason == "not_media"


@pytest.mark.parametrize("name", ["list.m3u8", "list.mp4"])
def test_a_playlist_reads_none_of_its_files(tmp_path: Path, name: str) -> None:
    clip(tmp_path / "secret.ts", 1)
    path = tmp_path / name
    path.write_text("#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:1,\nsecret.ts\n#EXT-X-ENDLIST\n")
    with pytest.raises(MediaError) as caught:
        read_frames(path, 5.0)
    assert caught.value.reason == "not_media"


@pytest.mark.parametrize(
    "text",
    [
        "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n",
        '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><Period/></MPD>',
        '<svg xmlns="http://www.w3.org/2000/svg" width="64" height="64"/>',
    ],
    ids=["sdp", "dash", "svg"],
)
def test_other_texts_that_name_addresses_are_no_media(tmp_path: Path, text: str) -> None:
    path = tmp_path / "clip.mp4"
    path.write_text(text)
    with pytest.raises(MediaError) as caught:
        read_frames(path, 5.0)
    assert caught.value.reason == "not_media"


@pytest.mark.parametrize("form", ["png", "gif", "bmp"])
def test_a_picture_is_no_video(tmp_path: Path, form: str) -> None:
    import cv2

    picture = tmp_path / ("p.png" if form != "bmp" else "p.bmp")
    cv2.imwrite(str(picture), texture(1)[0])
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"GIF89a" + bytes(300) if form == "gif" else picture.read_bytes())
    with pytest.raises(MediaError) as caught:
        read_frames(path, 5.0)
    assert caught.value.reason == "not_media"


def test_the_cover_of_a_recording_is_no_video(tmp_path: Path) -> None:
    import cv2

    path = tmp_path / "song.flac"
    write_flac_with_cover(path, cv2.imencode(".png", texture(1)[0])[1].tobytes())
    assert len(read_audio(path)) > 0
    with pytest.raises(MediaError) as caught:
        read_frames(path, 5.0)
    assert caught.value.reason == "no_video_track"


def write_flac_with_cover(path: Path, cover: bytes) -> None:
    """A FLAC file of noise with a picture block after its first block."""
    plain = path.with_name("plain.flac")
    with av.open(str(plain), "w") as container:
        stream = container.add_stream("flac", rate=16_000, layout="mono")
        noise = np.random.default_rng(0).integers(-9000, 9000, (1, 16_000)).astype(np.int16)
        frame = av.AudioFrame.from_ndarray(noise, format="s16", layout="mono")
        frame.sample_rate = 16_000
        for packet in (*stream.encode(frame), *stream.encode()):
            container.mux(packet)
    content = plain.read_bytes()
    head = 4 + 4 + int.from_bytes(content[5:8], "big")
    block = struct.pack(">II", 3, 9) + b"image/png" + struct.pack(">IIIIII", 0, 64, 64, 24, 0, len(cover)) + cover
    picture = bytes([6]) + len(block).to_bytes(3, "big") + block
    path.write_bytes(content[:head] + picture + content[head:])


def test_a_huge_picture_is_refused_before_it_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = clip(tmp_path / "a.mp4", 1)
    monkeypatch.setattr(media, "MAX_PIXELS", 64 * 63)
    monkeypatch.setattr(media, "_to_rgb", lambda *_: pytest.fail("a picture was decoded"))
    with pytest.raises(MediaError, match="64 × 64; at most 4032 pixels are supported") as caught:
        read_frames(path, 5.0)
    assert caught.value.reason == "too_large"


def test_a_header_of_huge_pictures_takes_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "huge.avi"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("rawvideo", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "bgr24"
        for packet in (*stream.encode(av.VideoFrame.from_ndarray(texture(1)[0], format="bgr24")), *stream.encode()):
            container.mux(packet)
    content = path.read_bytes()
    form = content.index(b"strf") + 8  # of the stream's format: its own size, then width and height
    size = struct.unpack("<iii", content[form : form + 12])
    assert (size[0], size[1], abs(size[2])) == (40, 64, 64)
    path.write_bytes(content[: form + 4] + struct.pack("<ii", 30_000, 30_000) + content[form + 12 :])
    assert read_in_bounded_memory(path, f"read_frames({str(path)!r}, 5.0)") in ("too_large", "not_media", "corrupt")


def test_pictures_that_are_kept_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = clip(tmp_path / "a.mp4", 1)
    monkeypatch.setattr(media, "MAX_KEPT_BYTES", 64 * 64 * 3 * 4)
    assert len(read_frames(path, 5.0).pixels) <= 4
    with pytest.raises(MediaError, match="25 pictures per second") as caught:
        read_frames(path, 25.0)
    assert caught.value.reason == "too_large"


def test_many_pictures_at_one_time_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_mp4(tmp_path / "many.mp4", texture(12))
    monkeypatch.setattr(media, "MAX_DECODED_FRAMES", 10)
    with pytest.raises(MediaError, match="more than 10 pictures") as caught:
        read_frames(path, 5.0)
    assert caught.value.reason == "too_long"


def write_wav_head(path: Path, rate: int, channels: int, seconds: float = 0.5) -> Path:
    frames = max(int(rate * seconds), 64)
    data = bytes(2 * channels * frames)
    head = struct.pack("<IHHIIHH", 16, 1, channels, rate, rate * channels * 2, channels * 2, 16)
    path.write_bytes(
        b"RIFF" + struct.pack("<I", 36 + len(data)) + b"WAVEfmt " + head + b"data" + struct.pack("<I", len(data)) + data
    )
    return path


@pytest.mark.parametrize(
    ("rate", "channels", "told"), [(1, 1, "1 samples per second; 1000 to 768000"), (16_000, 65, "65 channels; at most 64")]
)
def test_odd_rates_and_channels_are_refused(tmp_path: Path, rate: int, channels: int, told: str) -> None:
    with pytest.raises(MediaError, match=told) as caught:
        read_audio(write_wav_head(tmp_path / "a.wav", rate, channels))
    assert caught.value.reason == "odd_sound"


def test_ten_hours_of_sound_are_refused_in_bounded_memory(tmp_path: Path) -> None:
    path = write_wav_head(tmp_path / "long.wav", 1_000, 1, 36_000)
    assert read_in_bounded_memory(path, f"read_audio({str(path)!r})") == "too_long"


@pytest.mark.parametrize(
    "address",
    [
        "https://example.org/a.mp4",
        "rtsp://example.org/a",
        "file:/etc/passwd",
        "concat:a.mp4|b.mp4",
        "subfile:,,start,0,:a.mp4",
    ],
)
def test_an_address_is_no_file(address: str) -> None:
    assert is_url(address)
    with pytest.raises(MediaError, match="only local files are read"):
        read_audio(address)


@pytest.mark.parametrize("name", ["take:1.mp4", "a.mp4", "C/x.mp4", "data/clip.mp4", "pipe.wav", "日本:語.wav"])
def test_a_file_may_have_a_colon_in_its_name(tmp_path: Path, name: str) -> None:
    assert not is_url(name)
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    write_wav(path.with_name("plain.wav"), np.zeros(8_000) + 0.1).rename(path)
    assert len(read_audio(path)) == 8_000


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi", "mov", "wav", "flac", "mp3", "ogg", "ts", "webm", "aiff", "m4a"])
def test_everyday_containers_are_read(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    codec = {"wav": "pcm_s16le", "avi": "pcm_s16le", "flac": "flac", "mp3": "libmp3lame", "aiff": "pcm_s16be"}
    name = codec.get(suffix, "libopus" if suffix in ("ogg", "webm") else "aac")
    with av.open(str(path), "w") as container:
        stream = container.add_stream(name, rate=48_000, layout="mono")
        form = stream.codec_context.format.name
        values = 0.3 * np.sin(np.arange(48_000) / 20)
        frame = av.AudioFrame.from_ndarray(values.astype(np.float32)[None], format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 48_000, 0, Fraction(1, 48_000)
        fifo = av.AudioFifo()
        for piece in av.AudioResampler(format=form, layout="mono", rate=48_000).resample(frame):
            fifo.write(piece)
        size = stream.codec_context.frame_size or 960
        while (block := fifo.read(size, partial=True)) is not None:
            container.mux(stream.encode(block))
        container.mux(stream.encode())
    assert len(read_audio(path)) > 14_000
