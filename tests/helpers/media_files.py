"""Media files with known content, and a worker that dies, for the tests in this folder."""

import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from llm_mer.data.schema import Utterance
from llm_mer.features import extract

CLOCK = 12_800


def tone(frequency: float, seconds: float, rate: int, amplitude: float = 0.5) -> np.ndarray:
    return (amplitude * np.sin(2 * np.pi * frequency * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


def peak_frequency(samples: np.ndarray, rate: int) -> float:
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return float(np.argmax(spectrum) * rate / len(samples))


def video_stream(container: av.container.OutputContainer, pixels: np.ndarray) -> av.VideoStream:
    stream = container.add_stream("libx264", rate=25, options={"crf": "0", "preset": "ultrafast", "threads": "1"})
    stream.height, stream.width, stream.pix_fmt = pixels.shape[1], pixels.shape[2], "yuv420p"
    stream.codec_context.time_base = Fraction(1, CLOCK)
    return stream


def audio_stream(container: av.container.OutputContainer, samples: np.ndarray, rate: int, codec: str) -> av.AudioStream:
    return container.add_stream(codec, rate=rate, layout="mono" if len(samples) == 1 else "stereo")


def write_pictures(
    container: av.container.OutputContainer, stream: av.VideoStream, pixels: np.ndarray, times: list[float]
) -> None:
    """Lossless frames ``(F, h, w, 3)`` shown at ``times`` seconds."""
    for picture, seconds in zip(pixels, times, strict=True):
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
        frame.pts, frame.time_base = round(seconds * CLOCK), Fraction(1, CLOCK)
        container.mux(stream.encode(frame))
    container.mux(stream.encode())


def write_sound(container: av.container.OutputContainer, stream: av.AudioStream, samples: np.ndarray, rate: int) -> None:
    """Samples ``(channels, n)`` in one or two channels."""
    data, form = samples.astype(np.float32), "fltp"
    if stream.codec.name != "aac":
        data, form = np.round(samples.T.reshape(1, -1) * 32767).astype(np.int16), "s16"
    sound = av.AudioFrame.from_ndarray(np.ascontiguousarray(data), format=form, layout=stream.layout.name)
    sound.sample_rate = rate
    fifo = av.AudioFifo()
    fifo.write(sound)
    while (block := fifo.read(1024, partial=True)) is not None:
        container.mux(stream.encode(block))
    container.mux(stream.encode())


def write_wav(path: Path, samples: np.ndarray, rate: int = 16_000) -> Path:
    samples = np.atleast_2d(samples)
    with av.open(str(path), "w") as container:
        write_sound(container, audio_stream(container, samples, rate, "pcm_s16le"), samples, rate)
    return path


def write_mp4(
    path: Path,
    pixels: np.ndarray | None = None,
    times: list[float] | None = None,
    samples: np.ndarray | None = None,
    rate: int = 16_000,
    index_first: bool = False,
) -> Path:
    """H.264 and AAC; with ``index_first`` the index stands before the data, so that a cut file still opens."""
    with av.open(str(path), "w", options={"movflags": "faststart"} if index_first else {}) as container:
        video = None if pixels is None else video_stream(container, pixels)
        samples = None if samples is None else np.atleast_2d(samples)
        audio = None if samples is None else audio_stream(container, samples, rate, "aac")
        if pixels is not None:
            write_pictures(container, video, pixels, times or [i / 25 for i in range(len(pixels))])
        if samples is not None:
            write_sound(container, audio, samples, rate)
    return path


def clip(path: Path, seed: int, seconds: float = 0.6, index_first: bool = False) -> Path:
    """A moving texture and a noisy tone."""
    generator = np.random.default_rng(seed)
    texture = generator.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    pixels = np.stack([np.roll(texture, i, axis=1) for i in range(round(seconds * 25))])
    samples = tone(150 + 20 * seed, seconds, 16_000) + generator.normal(0, 0.02, int(seconds * 16_000))
    return write_mp4(path, pixels, samples=samples, index_first=index_first)


def work_or_die(utterance: Utterance, part: Path) -> None:
    """``extract._extract_one``, except that the process ends at once on an utterance whose id starts with ``deadly``."""
    if utterance.id.startswith("deadly"):
        os._exit(3)
    extract._extract_one(utterance, part)
