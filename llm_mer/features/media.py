"""Decoding sound and pictures with PyAV, with one reason for each way it can fail.

A clip is other people's data. Only the containers in :data:`CONTAINERS` are opened, none of which names another file or
address, and each bound is checked before the memory it bounds is taken.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from llm_mer.data.schema import SAMPLE_RATE, Frames
from llm_mer.errors import UserError
from llm_mer.storage.urls import is_url

MIN_SECONDS = 0.1
MAX_SECONDS = 600.0
MAX_PIXELS = 8192 * 4608
"""Of a picture as it is stored; 8K television has 33 million."""
MAX_DECODED_FRAMES = 600 * 240
"""Pictures that are decoded, however few of them are kept: ten minutes at 240 a second."""
MAX_KEPT_BYTES = 2 << 30
"""Of the pictures that are kept, scaled down, of one clip."""
MAX_CHANNELS = 64
SAMPLE_RATES = (1_000, 768_000)
"""Least and most samples a second. A rate of 1 Hz would make 16,000 samples of each one that is stored."""
CONTAINERS = (
    *("mov", "matroska", "avi", "wav", "w64", "flac", "mp3", "ogg", "aac", "aiff", "au", "caf", "amr", "nistsphere"),
    *("asf", "flv", "mpeg", "mpegts", "mpegvideo", "mxf", "dv", "ac3"),
)
"""Containers that are opened, by FFmpeg's names: ``mov`` is mp4, m4a, mov and 3gp; ``matroska`` is mkv and webm. No
playlist and no single picture is among them."""
PIPED_RIFF = 0x7FFF0000
"""A RIFF head (WAV, AVI) that announces this many bytes or more was written before the size was known."""
REASONS: dict[str, str] = {
    "no_file": "there is no such file",
    "empty_file": "the file has no bytes",
    "not_media": "it is not a media file PyAV can open",
    "no_audio_track": "it has no audio track",
    "no_video_track": "it has no video track",
    "corrupt": "decoding failed",
    "not_finite": "the audio track holds what are no numbers",
    "too_large": "its pictures are larger than are read",
    "odd_sound": "its sound is of a kind that is not read",
    "no_samples": "the audio track holds no samples",
    "no_frames": "the video track holds no frames",
    "too_short": f"it is shorter than {MIN_SECONDS} s",
    "too_long": f"it is longer than {MAX_SECONDS:.0f} s",
    "over_limit": "it is longer than is taken here",
}


class MediaError(UserError):
    """A file that cannot be used. ``reason`` is a key of :data:`REASONS`."""

    def __init__(self, path: Path | str, reason: str, detail: str = "") -> None:
        self.path, self.reason, self.detail = str(path), reason, detail
        super().__init__(f"{path}: {REASONS[reason]}" + (f" ({detail})" if detail else ""))

    def __reduce__(self) -> tuple[Any, ...]:
        return MediaError, (self.path, self.reason, self.detail)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        import av
    except ImportError:
        raise UserError("reading media needs PyAV: pip install 'llm-mer[media]'") from None
    if not path.is_file():
        raise MediaError(path, "no_file", "it is a URL; only local files are read" if is_url(path) else "")
    if path.stat().st_size == 0:
        raise MediaError(path, "empty_file")
    # An absolute path, since FFmpeg takes what stands before a colon for a protocol.
    options = {
        "protocol_whitelist": "file",
        "format_whitelist": ",".join(CONTAINERS),
        "max_pixels": str(MAX_PIXELS),  # of the pictures that are decoded to see what the streams are
    }
    try:
        container = av.open(str(path.resolve()), options=options)
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise MediaError(path, "not_media", str(error)) from None
    try:
        with container:
            yield container
    except (av.error.FFmpegError, OSError) as error:
        raise MediaError(path, "corrupt", str(error)) from None


def sound_of(video: str) -> str | None:
    """The clip itself as the source of its sound, None when it has no sound track.

    A clip that cannot be opened keeps its sound, so that reading it says what is wrong.
    """
    try:
        with _opened(Path(video)) as container:
            return video if container.streams.audio else None
    except UserError:
        return video


def check_length(path: Path | str, most_seconds: float) -> None:
    """Refuse a clip that is longer, without decoding it: the times of its packets tell, whatever its head says.

    The first sound and the first moving pictures are looked at, which are what is read. Packets without a time pass.

    Raises:
        MediaError: with its reason.
    """
    path = Path(path)
    with _opened(path) as container:
        pictures = _moving_pictures(container)
        streams = [*container.streams.audio[:1], *([] if pictures is None else [pictures])]
        if not streams:
            return
        starts: dict[int, float] = {}
        for packet in container.demux(streams):
            ticks = packet.pts if packet.pts is not None else packet.dts
            if ticks is None or packet.time_base is None:
                continue
            seconds = float(ticks * packet.time_base)
            start = starts.setdefault(packet.stream.index, max(seconds, 0.0))
            if seconds + float((packet.duration or 0) * packet.time_base) - start > most_seconds:
                raise MediaError(path, "over_limit", f"at most {most_seconds:g} s")


def _check_whole(path: Path, stream: Any) -> None:
    """A cut mp4 whose index comes first decodes without an error up to the cut; its index tells."""
    entries = stream.index_entries
    if len(entries) and (end := entries[-1].pos + entries[-1].size) > path.stat().st_size:
        raise MediaError(path, "corrupt", f"it is cut off: {path.stat().st_size} bytes of at least {end}")


def _check_riff(path: Path) -> None:
    """A cut WAV or AVI decodes without an error up to the cut; its head tells."""
    with path.open("rb") as file:
        head = file.read(8)
    announced = int.from_bytes(head[4:], "little") + 8
    # One byte less is let pass: some writers announce a padding byte that they do not write.
    if head[:4] == b"RIFF" and path.stat().st_size + 1 < announced < PIPED_RIFF:
        raise MediaError(path, "corrupt", f"it is cut off: {path.stat().st_size} bytes of at least {announced}")


def read_audio(path: Path | str, rate: int = SAMPLE_RATE) -> np.ndarray:
    """The first audio track, mean of its channels, as float32 in [-1, 1] at ``rate`` Hz: ``(samples,)``.

    Raises:
        MediaError: with its reason; a file that ends before its index says so counts as corrupt.
    """
    path = Path(path)
    blocks: list[np.ndarray] = []
    total = 0
    with _opened(path) as container:
        if not container.streams.audio:
            raise MediaError(path, "no_audio_track")
        _check_whole(path, container.streams.audio[0])
        import av

        resampler = av.AudioResampler(format="fltp", rate=rate)  # its own down-mix to mono is 3 dB too loud and clips
        for frame in container.decode(container.streams.audio[0]):
            _check_sound(path, frame)
            if total + frame.samples / frame.sample_rate * rate > (MAX_SECONDS + 1) * rate:
                raise MediaError(path, "too_long")
            frame.pts = None  # gaps in timestamps would otherwise be refused by the resampler
            for piece in resampler.resample(frame):
                blocks.append(piece.to_ndarray().mean(axis=0))
                total += len(blocks[-1])
            if total > MAX_SECONDS * rate:
                raise MediaError(path, "too_long")
        for piece in resampler.resample(None):
            blocks.append(piece.to_ndarray().mean(axis=0))
    samples = np.concatenate(blocks) if blocks else np.zeros(0, dtype=np.float32)
    if not len(samples):
        raise MediaError(path, "no_samples")
    _check_riff(path)
    if len(samples) < MIN_SECONDS * rate:
        raise MediaError(path, "too_short", f"{len(samples) / rate:.3f} s of sound")
    odd = int(np.count_nonzero(~np.isfinite(samples)))
    if odd:
        raise MediaError(path, "not_finite", f"{odd} of {len(samples)} samples are NaN or infinite")
    return np.clip(samples, -1.0, 1.0).astype(np.float32)


def read_frames(path: Path | str, fps: float, max_side: int = 256) -> Frames:
    """The first video track sampled at even times: the frame on display at ``0, 1/fps, 2/fps, …``.

    Times come from the frames' own timestamps, so a variable frame rate is sampled correctly. Pictures larger than
    ``max_side`` are scaled down while decoding, which bounds memory.

    Raises:
        MediaError: with its reason.
    """
    path = Path(path)
    taken: list[np.ndarray] = []
    kept = 0
    with _opened(path) as container:
        stream = _moving_pictures(container)
        if stream is None:
            raise MediaError(path, "no_video_track")
        _check_size(path, stream.width, stream.height)
        stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
        _check_whole(path, stream)
        rate = float(stream.average_rate or 25)
        start: float | None = None
        shown: np.ndarray | None = None
        end = 0.0

        def take_until(seconds: float) -> None:
            nonlocal kept
            assert shown is not None
            while len(taken) / fps < seconds - 1e-6:
                kept += shown.nbytes
                if kept > MAX_KEPT_BYTES:
                    raise MediaError(
                        path, "too_large", f"{fps:g} pictures a second are more than {MAX_KEPT_BYTES >> 20} MiB"
                    )
                taken.append(shown)

        for number, frame in enumerate(container.decode(stream)):
            if number >= MAX_DECODED_FRAMES:
                raise MediaError(path, "too_long", f"more than {MAX_DECODED_FRAMES} pictures")
            seconds = float(frame.time) if frame.time is not None else number / rate
            start = seconds if start is None else start
            seconds -= start
            if seconds > MAX_SECONDS:  # before the gap up to it is filled
                raise MediaError(path, "too_long")
            if shown is not None:
                take_until(seconds)
            _check_size(path, frame.width, frame.height)
            shown = _to_rgb(frame, max_side)
            end = seconds + 1 / rate
        if shown is None:
            raise MediaError(path, "no_frames")
        _check_riff(path)
        take_until(min(end, MAX_SECONDS + 1 / fps))
    return Frames(np.stack(taken), fps)


def _moving_pictures(container: Any) -> Any | None:
    """The first video stream that is none; the cover of a record is a stream with one picture, which is no video."""
    from av.stream import Disposition

    return next((s for s in container.streams.video if not s.disposition & Disposition.attached_pic), None)


def _check_size(path: Path, width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise MediaError(path, "too_large", f"{width} × {height}; at most {MAX_PIXELS} pixels are read")


def _check_sound(path: Path, frame: Any) -> None:
    """Each frame says its rate and channels anew."""
    low, high = SAMPLE_RATES
    if not low <= frame.sample_rate <= high:
        raise MediaError(path, "odd_sound", f"{frame.sample_rate} samples a second; {low} to {high} are read")
    if frame.layout.nb_channels > MAX_CHANNELS:
        raise MediaError(path, "odd_sound", f"{frame.layout.nb_channels} channels; at most {MAX_CHANNELS} are read")


def _to_rgb(frame: Any, max_side: int) -> np.ndarray:
    scale = min(1.0, max_side / max(frame.width, frame.height))
    if scale < 1.0:
        frame = frame.reformat(width=max(round(frame.width * scale), 1), height=max(round(frame.height * scale), 1))
    return frame.to_ndarray(format="rgb24")
