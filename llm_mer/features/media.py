"""Decoding audio and video with PyAV, with one reason for each way it can fail.

Clips are untrusted input. Only the containers in :data:`CONTAINERS` are opened, none of which can refer to another file or
URL, and each limit is checked before the memory it limits is allocated.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from llm_mer.data.schema import SAMPLE_RATE, Frames
from llm_mer.errors import UserError
from llm_mer.features.truncation import (
    PacketTimes,
    decode_to_the_end,
    find_missing_bytes,
    find_missing_samples,
    states_duration,
)
from llm_mer.storage.urls import is_url

MIN_SECONDS = 0.1
MAX_SECONDS = 600.0
MAX_PIXEL_SHAPE = 8
"""Times that a pixel may be wider than high, or higher than wide."""
MAX_PIXELS = 8192 * 4608
"""Of a picture as stored; 8K video has 33 million."""
MAX_DECODED_FRAMES = 600 * 240
"""Pictures that are decoded, however few of them are kept: ten minutes at 240 per second."""
MAX_KEPT_BYTES = 2 << 30
"""Total size of the scaled-down pictures kept of one clip."""
MAX_CHANNELS = 64
AV_TIME_BASE = 1_000_000
"""Units of a container's duration in a second."""
SAMPLE_RATES = (1_000, 768_000)
"""Lowest and highest sample rate. At 1 Hz each stored sample would be resampled to 16,000."""
CONTAINERS = (
    *("mov", "matroska", "avi", "wav", "w64", "flac", "mp3", "ogg", "aac", "aiff", "au", "caf", "amr", "nistsphere"),
    *("asf", "flv", "mpeg", "mpegts", "mpegvideo", "mxf", "dv", "ac3"),
)
"""Containers that are opened, by FFmpeg's names: ``mov`` is mp4, m4a, mov and 3gp; ``matroska`` is mkv and webm. Playlists
and still images are not among them."""
MAX_CANCELLED = 0.1
"""The mean of ``N`` independent channels has ``1 / N`` of their power. Less than this share of that is left only of channels
of opposite polarity, which cancel one another."""
REASONS: dict[str, str] = {
    "no_file": "no such file",
    "empty_file": "the file has no bytes",
    "not_media": "it is not a media file PyAV can open",
    "no_audio_track": "it has no audio track",
    "no_video_track": "it has no video track",
    "corrupt": "decoding failed",
    "not_finite": "the audio track holds NaN or infinity",
    "too_large": "its pictures are too large",
    "odd_pictures": "the form of its pictures is not supported",
    "odd_sound": "its audio format is not supported",
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
def _open_container(path: Path) -> Iterator[Any]:
    try:
        import av
    except ImportError:
        raise UserError("reading media needs PyAV: pip install 'llm-mer[media]'") from None
    if not path.is_file():
        raise MediaError(path, "no_file", "it is a URL; only local files are read" if is_url(path) else "")
    if path.stat().st_size == 0:
        raise MediaError(path, "empty_file")
    # An absolute path, since FFmpeg reads anything before a colon as a protocol.
    options = {
        "protocol_whitelist": "file",
        "format_whitelist": ",".join(CONTAINERS),
        "max_pixels": str(MAX_PIXELS),  # of pictures decoded to probe the streams
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


def audio_source(video: str) -> str | None:
    """The clip itself if it has an audio track, else None.

    A clip that cannot be opened is returned too, so that reading it reports what is wrong.
    """
    try:
        with _open_container(Path(video)) as container:
            return video if container.streams.audio else None
    except UserError:
        return video


def media_tracks(path: Path) -> tuple[bool, bool]:
    """Whether a file has pictures, and whether it has sound. Both are said of one that cannot be opened, as above."""
    try:
        with _open_container(path) as container:
            found = _video_stream(container) is not None, bool(container.streams.audio)
    except MediaError:
        return True, True
    return found if any(found) else (True, True)


def check_length(path: Path | str, max_seconds: float) -> None:
    """Refuse a clip that is longer, without decoding it: by the times of its packets, whatever its header declares.

    Only the first audio and video streams, which are the ones read, are checked. Packets without a time are ignored.

    Raises:
        MediaError: with its reason.
    """
    path = Path(path)
    with _open_container(path) as container:
        video = _video_stream(container)
        streams = [*container.streams.audio[:1], *([] if video is None else [video])]
        if not streams:
            return
        starts: dict[int, float] = {}
        for packet in container.demux(streams):
            ticks = packet.pts if packet.pts is not None else packet.dts
            if ticks is None or packet.time_base is None:
                continue
            seconds = float(ticks * packet.time_base)
            start = starts.setdefault(packet.stream.index, max(seconds, 0.0))
            if seconds + float((packet.duration or 0) * packet.time_base) - start > max_seconds:
                raise MediaError(path, "over_limit", f"at most {max_seconds:g} s")


def _decode(container: Any, stream: Any, path: Path) -> Iterator[Any]:
    """The frames of a stream.

    Raises:
        MediaError: before the first one or after the last, for a file that is cut off.
    """

    def refuse(cut_off: str | None) -> None:
        if cut_off is not None:
            raise MediaError(path, "corrupt", cut_off)

    refuse(find_missing_samples(path, stream))
    times, found_any = PacketTimes(), False
    for frame in decode_to_the_end(container, stream, times):
        found_any = True
        yield frame
    if not found_any:  # the reader says that there is nothing
        return
    refuse(find_missing_bytes(path))
    if states_duration(container, path):
        refuse(times.find_missing_seconds(container.duration / AV_TIME_BASE))


def read_audio(path: Path | str, rate: int = SAMPLE_RATE) -> np.ndarray:
    """The first audio track, mean of its channels, as float32 in [-1, 1] at ``rate`` Hz: ``(samples,)``.

    Raises:
        MediaError: with its reason; a truncated file counts as corrupt.
    """
    path = Path(path)
    blocks: list[np.ndarray] = []
    total = 0
    power = _ChannelPower()

    def mix(piece: Any) -> int:
        # Interleaved, because PyAV (18) does not find the end of 8 planes or more, and reads memory beyond them.
        channels = piece.to_ndarray().reshape(-1, piece.layout.nb_channels)
        blocks.append(channels.mean(axis=1))
        power.add(channels, blocks[-1])
        return len(channels)

    with _open_container(path) as container:
        if not container.streams.audio:
            raise MediaError(path, "no_audio_track")
        import av

        resampler = av.AudioResampler(format="flt", rate=rate)  # its own mono down-mix is 3 dB too loud and clips
        for frame in _decode(container, container.streams.audio[0], path):
            _check_audio_format(path, frame)
            if total + frame.samples / frame.sample_rate * rate > (MAX_SECONDS + 1) * rate:
                raise MediaError(path, "too_long")
            frame.pts = None  # the resampler would refuse gaps in the timestamps
            total += sum(map(mix, resampler.resample(frame)))
            if total > MAX_SECONDS * rate:
                raise MediaError(path, "too_long")
        for piece in resampler.resample(None):
            mix(piece)
    samples = np.concatenate(blocks) if blocks else np.zeros(0, dtype=np.float32)
    if not len(samples):
        raise MediaError(path, "no_samples")
    if len(samples) < MIN_SECONDS * rate:
        raise MediaError(path, "too_short", f"{len(samples) / rate:.3f} s of sound")
    non_finite = int(np.count_nonzero(~np.isfinite(samples)))
    if non_finite:
        raise MediaError(path, "not_finite", f"{non_finite} of {len(samples)} samples are NaN or infinite")
    if power.cancels:
        raise MediaError(path, "odd_sound", "its channels have opposite polarity and cancel one another: invert one")
    return np.clip(samples, -1.0, 1.0).astype(np.float32)


class _ChannelPower:
    """Sums of squares of the channels and of their mean."""

    def __init__(self) -> None:
        self.channels, self.mean, self.most = 0.0, 0.0, 1

    def add(self, channels: np.ndarray, mean: np.ndarray) -> None:
        """Take in ``(n, C)`` samples and their mean ``(n,)``."""
        self.most = max(self.most, channels.shape[1])
        self.channels += float(np.square(channels, dtype=np.float64).sum()) / channels.shape[1]
        self.mean += float(np.square(mean, dtype=np.float64).sum())

    @property
    def cancels(self) -> bool:
        """Whether less is left than of channels that are independent (:data:`MAX_CANCELLED`)."""
        return self.mean * self.most < MAX_CANCELLED * self.channels


def read_frames(path: Path | str, fps: float, max_side: int = 256) -> Frames:
    """Sample the first video track at regular times: the frame displayed at ``0, 1/fps, 2/fps, …``.

    Times come from the frames' own timestamps, so a variable frame rate is sampled correctly. Pictures larger than
    ``max_side`` are scaled down while decoding, which limits memory. Pixels that are not square (DV, DVD, some cameras) are
    stretched to what is displayed. Pictures are rotated and mirrored by the file's display
    matrix: a phone held upright stores pictures that lie on their side.

    Raises:
        MediaError: with its reason.
    """
    path = Path(path)
    frames: list[np.ndarray] = []
    kept_bytes = 0
    with _open_container(path) as container:
        stream = _video_stream(container)
        if stream is None:
            raise MediaError(path, "no_video_track")
        _check_picture_size(path, stream.width, stream.height)
        stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
        rate, pixel_shape = float(stream.average_rate or 25), _pixel_shape(path, stream)
        start: float | None = None
        displayed: np.ndarray | None = None
        end = 0.0

        def repeat_displayed_until(seconds: float) -> None:
            nonlocal kept_bytes
            assert displayed is not None
            while len(frames) / fps < seconds - 1e-6:
                kept_bytes += displayed.nbytes
                if kept_bytes > MAX_KEPT_BYTES:
                    raise MediaError(
                        path, "too_large", f"{fps:g} pictures per second take more than {MAX_KEPT_BYTES >> 20} MiB"
                    )
                frames.append(displayed)

        for number, frame in enumerate(_decode(container, stream, path)):
            if number >= MAX_DECODED_FRAMES:
                raise MediaError(path, "too_long", f"more than {MAX_DECODED_FRAMES} pictures")
            seconds = float(frame.time) if frame.time is not None else number / rate
            start = seconds if start is None else start
            seconds -= start
            if seconds > MAX_SECONDS:  # before the gap up to this frame is filled
                raise MediaError(path, "too_long")
            if displayed is not None:
                repeat_displayed_until(seconds)
            _check_picture_size(path, frame.width, frame.height)
            displayed = _orient(_to_rgb(frame, max_side, pixel_shape), _display_matrix(frame), path)
            end = seconds + 1 / rate
        if displayed is None:
            raise MediaError(path, "no_frames")
        repeat_displayed_until(min(end, MAX_SECONDS + 1 / fps))
    return Frames(np.stack(frames), fps)


def _video_stream(container: Any) -> Any | None:
    """The first real video stream; cover art is a stream of one attached picture, and is skipped."""
    from av.stream import Disposition

    return next((s for s in container.streams.video if not s.disposition & Disposition.attached_pic), None)


def _check_picture_size(path: Path, width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise MediaError(path, "too_large", f"{width} × {height}; at most {MAX_PIXELS} pixels are supported")


def _check_audio_format(path: Path, frame: Any) -> None:
    """Check rate and channels, which every frame declares anew."""
    low, high = SAMPLE_RATES
    if not low <= frame.sample_rate <= high:
        raise MediaError(path, "odd_sound", f"{frame.sample_rate} samples per second; {low} to {high} are supported")
    if frame.layout.nb_channels > MAX_CHANNELS:
        raise MediaError(path, "odd_sound", f"{frame.layout.nb_channels} channels; at most {MAX_CHANNELS} are supported")


def _pixel_shape(path: Path, stream: Any) -> float:
    """How many times as wide as high a pixel is displayed (the sample aspect ratio): 1 where the file does not say.

    Raises:
        MediaError: more than :data:`MAX_PIXEL_SHAPE` or its inverse.
    """
    ratio = float(stream.sample_aspect_ratio or 1)
    if not 1 / MAX_PIXEL_SHAPE <= ratio <= MAX_PIXEL_SHAPE:
        raise MediaError(
            path, "odd_pictures", f"pixels {ratio:g} times as wide as high; at most {MAX_PIXEL_SHAPE} are supported"
        )
    return ratio


def _to_rgb(frame: Any, max_side: int, pixel_shape: float) -> np.ndarray:
    """``(h, w, 3)`` of square pixels: the shorter side of a pixel is stretched to the longer one."""
    width, height = frame.width * max(pixel_shape, 1.0), frame.height * max(1 / pixel_shape, 1.0)
    scale = min(1.0, max_side / max(width, height))
    size = max(round(width * scale), 1), max(round(height * scale), 1)
    if size != (frame.width, frame.height):
        frame = frame.reformat(width=size[0], height=size[1])
    return frame.to_ndarray(format="rgb24")


def _display_matrix(frame: Any) -> tuple[int, int, int, int] | None:
    """``(a, b, c, d)`` of the display matrix of ISO 14496-12, 65536 being 1: a picture's ``(x, y)`` is shown at
    ``(a x + c y, b x + d y)``. None where the file has none.
    """
    data = next((entry for entry in frame.side_data if entry.type.name == "DISPLAYMATRIX"), None)
    if data is None:
        return None
    a, b, _, c, d, *_ = np.frombuffer(data, dtype=np.int32).tolist()
    return a, b, c, d


def _orient(pixels: np.ndarray, matrix: tuple[int, int, int, int] | None, path: Path) -> np.ndarray:
    """``(h, w, 3)`` as it is displayed. Raises :class:`MediaError` for a rotation by other than a multiple of 90 degrees."""
    if matrix is None:
        return pixels
    a, b, c, d = matrix
    if ((b or c) and (a or d)) or not ((a and d) or (b and c)):
        raise MediaError(path, "odd_pictures", f"{a}, {b}, {c}, {d} is no rotation by a multiple of 90 degrees")
    across, down = (a, d) if a else (c, b)
    turned = pixels if a else pixels.transpose(1, 0, 2)
    turned = turned[:, ::-1] if across < 0 else turned
    return np.ascontiguousarray(turned[::-1] if down < 0 else turned)
