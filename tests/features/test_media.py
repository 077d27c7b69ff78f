"""Sound and pictures come out as they were put in, and each file that cannot be used is named with its reason."""

import pickle
import struct
import sys
import wave
from pathlib import Path

import av
import numpy as np
import pytest
from media_files import clip, peak_frequency, tone, write_mp4, write_wav

from llm_mer.data.schema import SAMPLE_RATE
from llm_mer.errors import UserError
from llm_mer.features import media
from llm_mer.features.media import REASONS, MediaError, check_length, read_audio, read_frames

GREY_STEP = 20


def grey(levels: list[int], height: int = 32, width: int = 32) -> np.ndarray:
    return np.stack([np.full((height, width, 3), level, dtype=np.uint8) for level in levels])


def shown(path: Path, fps: float) -> list[int]:
    """Grey level of each sampled frame in steps of GREY_STEP."""
    return [round(float(p.mean()) / GREY_STEP) for p in read_frames(path, fps).pixels]


# --- sound ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 44_100, 48_000])
def test_a_wav_tone_keeps_its_length_frequency_and_level_after_resampling(tmp_path: Path, rate: int) -> None:
    samples = read_audio(write_wav(tmp_path / "tone.wav", tone(440, 1.5, rate), rate))
    assert samples.dtype == np.float32
    assert samples.ndim == 1
    assert len(samples) == pytest.approx(1.5 * SAMPLE_RATE, abs=40)
    assert peak_frequency(samples, SAMPLE_RATE) == pytest.approx(440, abs=1)
    assert np.abs(samples[2000:-2000]).max() == pytest.approx(0.5, abs=0.01)


def test_a_wav_at_the_target_rate_comes_back_sample_for_sample(tmp_path: Path) -> None:
    written = tone(300, 0.7, SAMPLE_RATE)
    np.testing.assert_allclose(read_audio(write_wav(tmp_path / "a.wav", written)), written, atol=1 / 32767)


def test_another_rate_can_be_asked_for(tmp_path: Path) -> None:
    samples = read_audio(write_wav(tmp_path / "a.wav", tone(440, 1.0, 16_000)), rate=48_000)
    assert len(samples) == pytest.approx(48_000, abs=100)
    assert peak_frequency(samples, 48_000) == pytest.approx(440, abs=1.5)


def test_frequencies_above_the_new_nyquist_are_filtered_out(tmp_path: Path) -> None:
    samples = read_audio(write_wav(tmp_path / "a.wav", tone(12_000, 1.0, 48_000), 48_000))
    assert np.abs(samples[1000:-1000]).max() < 0.02


def test_stereo_becomes_the_mean_of_both_channels(tmp_path: Path) -> None:
    left, right = tone(300, 1.0, SAMPLE_RATE, 0.6), tone(700, 1.0, SAMPLE_RATE, 0.2)
    samples = read_audio(write_wav(tmp_path / "a.wav", np.stack([left, right])))
    np.testing.assert_allclose(samples, (left + right) / 2, atol=2e-4)


def test_the_same_full_scale_sound_in_both_channels_is_not_clipped(tmp_path: Path) -> None:
    loud = tone(300, 0.5, SAMPLE_RATE, 0.95)
    samples = read_audio(write_wav(tmp_path / "a.wav", np.stack([loud, loud])))
    np.testing.assert_allclose(samples, loud, atol=2e-4)


def test_aac_in_mp4_keeps_length_frequency_and_level(tmp_path: Path) -> None:
    path = write_mp4(tmp_path / "a.mp4", grey([100] * 25), samples=tone(440, 1.0, 44_100), rate=44_100)
    samples = read_audio(path)
    assert len(samples) == pytest.approx(SAMPLE_RATE, abs=1200)  # AAC comes in blocks of 1024
    assert peak_frequency(samples, SAMPLE_RATE) == pytest.approx(440, abs=2)
    assert np.abs(samples[4000:12_000]).max() == pytest.approx(0.5, abs=0.05)


def test_sound_of_an_mp4_without_pictures_is_read(tmp_path: Path) -> None:
    assert len(read_audio(write_mp4(tmp_path / "a.mp4", samples=tone(440, 1.0, 16_000)))) >= 16_000


# --- pictures ---------------------------------------------------------------------------------------------------------


def test_a_constant_frame_rate_is_sampled_at_even_times(tmp_path: Path) -> None:
    path = write_mp4(tmp_path / "a.mp4", grey([GREY_STEP * (i // 5) for i in range(50)]))  # a step each 0.2 s
    frames = read_frames(path, 5)
    assert frames.fps == 5
    assert frames.pixels.shape == (10, 32, 32, 3)
    assert frames.pixels.dtype == np.uint8
    assert shown(path, 5) == list(range(10))


@pytest.mark.parametrize("fps", [2.0, 5.0, 6.0, 24.0])
def test_a_variable_frame_rate_shows_the_frame_on_display_at_each_time(tmp_path: Path, fps: float) -> None:
    times = [0.0, 0.04, 0.5, 0.54, 0.58, 1.26, 1.3, 1.9, 2.34]
    path = write_mp4(tmp_path / "a.mp4", grey([GREY_STEP * i for i in range(len(times))]), times)
    found = shown(path, fps)
    asked = np.arange(len(found)) / fps
    assert found == [int(np.searchsorted(times, t + 1e-6, side="right")) - 1 for t in asked]
    assert asked[-1] >= times[-1] - 1 / fps  # nothing is left off at the end
    assert asked[-1] < times[-1] + 0.5


def test_times_count_from_the_first_frame_of_the_track(tmp_path: Path) -> None:
    path = write_mp4(tmp_path / "a.mp4", grey([0, GREY_STEP, 2 * GREY_STEP]), [3.0, 3.5, 4.0])
    assert shown(path, 2) == [0, 1, 2]


def test_one_frame_is_a_clip_of_one_picture(tmp_path: Path) -> None:
    assert shown(write_mp4(tmp_path / "a.mp4", grey([3 * GREY_STEP])), 6) == [3]


def test_colours_come_out_as_rgb(tmp_path: Path) -> None:
    red = np.zeros((3, 32, 32, 3), dtype=np.uint8)
    red[..., 0] = 220
    colour = read_frames(write_mp4(tmp_path / "a.mp4", red), 25).pixels.mean(axis=(0, 1, 2))
    np.testing.assert_allclose(colour, (220, 0, 0), atol=6)


@pytest.mark.parametrize(
    ("height", "width", "expected"), [(480, 640, (192, 256)), (640, 320, (256, 128)), (96, 256, (96, 256))]
)
def test_big_frames_are_scaled_to_the_longer_side_and_small_ones_kept(
    tmp_path: Path, height: int, width: int, expected: tuple[int, int]
) -> None:
    pixels = grey([40, 40], height, width)
    pixels[:, :, width // 2 :] = 200
    found = read_frames(write_mp4(tmp_path / "a.mp4", pixels), 25).pixels
    assert found.shape[1:3] == expected
    middle = expected[1] // 2
    assert found[:, :, : middle - 4].mean() == pytest.approx(40, abs=3)
    assert found[:, :, middle + 4 :].mean() == pytest.approx(200, abs=3)


def test_the_limit_of_the_longer_side_can_be_set(tmp_path: Path) -> None:
    path = write_mp4(tmp_path / "a.mp4", grey([40], 64, 128))
    assert read_frames(path, 25, max_side=32).pixels.shape[1:3] == (16, 32)


# --- files that cannot be used ----------------------------------------------------------------------------------------


def check(error: MediaError, path: Path, reason: str) -> None:
    assert error.reason == reason
    assert str(error).startswith(f"{path}: {REASONS[reason]}")
    assert isinstance(error, UserError)


@pytest.mark.parametrize("read", [read_audio, lambda path: read_frames(path, 6)], ids=["audio", "frames"])
class TestBothReaders:
    def test_a_missing_file_is_named(self, tmp_path: Path, read) -> None:
        with pytest.raises(MediaError) as caught:
            read(tmp_path / "gone.mp4")
        check(caught.value, tmp_path / "gone.mp4", "no_file")

    def test_a_folder_is_no_file(self, tmp_path: Path, read) -> None:
        with pytest.raises(MediaError) as caught:
            read(tmp_path)
        check(caught.value, tmp_path, "no_file")

    def test_an_empty_file_is_named(self, tmp_path: Path, read) -> None:
        path = tmp_path / "empty.mp4"
        path.touch()
        with pytest.raises(MediaError) as caught:
            read(path)
        check(caught.value, path, "empty_file")

    def test_text_in_an_mp4_name_is_not_media(self, tmp_path: Path, read) -> None:
        path = tmp_path / "text.mp4"
        path.write_text("this is not a film\n" * 50)
        with pytest.raises(MediaError) as caught:
            read(path)
        check(caught.value, path, "not_media")

    def test_an_mp4_cut_before_its_index_is_not_media(self, tmp_path: Path, read) -> None:
        path = clip(tmp_path / "cut.mp4", 1)
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
        with pytest.raises(MediaError) as caught:
            read(path)
        check(caught.value, path, "not_media")

    @pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
    def test_an_mp4_cut_after_its_index_is_corrupt_and_not_half_a_clip(self, tmp_path: Path, read, share: float) -> None:
        path = clip(tmp_path / "cut.mp4", 1, index_first=True)
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
        with pytest.raises(MediaError) as caught:
            read(path)
        check(caught.value, path, "corrupt")
        assert "cut off" in str(caught.value)

    def test_overwritten_data_is_corrupt(self, tmp_path: Path, read) -> None:
        path = clip(tmp_path / "bad.mp4", 1)
        data = bytearray(path.read_bytes())
        start = data.find(b"mdat") + 100
        length = data.find(b"moov") - start - 100
        data[start : start + length] = np.random.default_rng(0).bytes(length)
        path.write_bytes(data)
        with pytest.raises(MediaError) as caught:
            read(path)
        check(caught.value, path, "corrupt")

    def test_no_pyav_is_told_with_what_to_install(self, tmp_path: Path, read, monkeypatch: pytest.MonkeyPatch) -> None:
        path = clip(tmp_path / "a.mp4", 1, 0.2)
        monkeypatch.setitem(sys.modules, "av", None)
        with pytest.raises(UserError, match=r"pip install 'llm-mer\[media\]'"):
            read(path)


def test_a_film_without_sound_has_no_audio_track(tmp_path: Path) -> None:
    path = write_mp4(tmp_path / "silent.mp4", grey([50] * 10))
    with pytest.raises(MediaError) as caught:
        read_audio(path)
    check(caught.value, path, "no_audio_track")


def test_sound_alone_has_no_video_track(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "sound.wav", tone(440, 0.5, 16_000))
    with pytest.raises(MediaError) as caught:
        read_frames(path, 6)
    check(caught.value, path, "no_video_track")


def test_a_wav_header_without_samples_is_told_apart(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "header.wav", tone(440, 0.5, 16_000))
    data = path.read_bytes()
    path.write_bytes(data[: data.find(b"data") + 8])
    with pytest.raises(MediaError) as caught:
        read_audio(path)
    check(caught.value, path, "no_samples")


def test_a_wav_that_was_written_to_a_pipe_is_read_and_a_cut_one_is_not(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "sound.wav", tone(440, 0.5, 16_000))
    data = path.read_bytes()
    path.write_bytes(data[:4] + b"\xff\xff\xff\xff" + data[8:])
    assert len(read_audio(path)) == 8_000
    path.write_bytes(data[:-2])
    with pytest.raises(MediaError) as caught:
        read_audio(path)
    check(caught.value, path, "corrupt")
    assert f"{len(data) - 2} bytes of at least {len(data)}" in str(caught.value)


def test_sound_under_a_tenth_of_a_second_is_too_short(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "short.wav", tone(440, 0.05, 16_000))
    with pytest.raises(MediaError) as caught:
        read_audio(path)
    check(caught.value, path, "too_short")
    assert "0.050 s of sound" in str(caught.value)


def test_sound_over_the_limit_is_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(media, "MAX_SECONDS", 1.0)
    path = write_wav(tmp_path / "long.wav", tone(440, 1.5, 16_000))
    with pytest.raises(MediaError) as caught:
        read_audio(path)
    check(caught.value, path, "too_long")


def test_pictures_over_the_limit_are_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(media, "MAX_SECONDS", 1.0)
    path = write_mp4(tmp_path / "long.mp4", grey([50] * 40))
    with pytest.raises(MediaError) as caught:
        read_frames(path, 6)
    check(caught.value, path, "too_long")


def test_a_media_error_comes_whole_out_of_a_worker_process() -> None:
    error = pickle.loads(pickle.dumps(MediaError("a.mp4", "corrupt", "detail")))
    assert (error.path, error.reason, error.detail) == ("a.mp4", "corrupt", "detail")
    assert str(error) == "a.mp4: decoding failed (detail)"


# --- a length of its caller's -----------------------------------------------------------------------------------------


def test_a_clip_is_as_long_as_its_packets_say_and_nothing_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Undecoded:
        """A container that may be taken apart and not decoded."""

        def __init__(self, path: str, options: dict[str, str]) -> None:
            self.inner = opened(path, options=options)
            self.streams, self.demux = self.inner.streams, self.inner.demux

        def __enter__(self) -> "Undecoded":
            return self

        def __exit__(self, *_: object) -> None:
            self.inner.close()

    opened = av.open
    seconds = {"sound.wav": 3.0, "both.mp4": 2.0, "pictures.mkv": 2.0}
    write_wav(tmp_path / "sound.wav", tone(200, 3.0, 16_000))
    write_mp4(tmp_path / "both.mp4", grey([40] * 10), samples=tone(200, 2.0, 16_000))
    write_mp4(tmp_path / "pictures.mkv", grey([40] * 51), times=[i / 25 for i in range(51)])
    monkeypatch.setattr(av, "open", Undecoded)
    for name, length in seconds.items():
        check_length(tmp_path / name, length + 0.2)
        with pytest.raises(MediaError, match=r"longer than is taken here \(at most 1\.9 s\)") as caught:
            check_length(tmp_path / name, 1.9)
        assert caught.value.reason == "over_limit"


def test_a_gap_in_the_clock_counts_as_length(tmp_path: Path) -> None:
    path = write_mp4(tmp_path / "gap.mkv", grey([40, 80]), times=[0.0, 50.0])
    check_length(path, 51.0)
    with pytest.raises(MediaError, match="at most 20 s"):
        check_length(path, 20.0)


def test_a_list_of_files_has_no_length(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    path.write_text("ffconcat version 1.0\nfile other.mp4\n")
    with pytest.raises(MediaError) as caught:
        check_length(path, 20.0)
    assert caught.value.reason == "not_media"


# --- what a file says of how it is to be shown and heard --------------------------------------------------------------


def with_matrix(path: Path, matrix: tuple[int, ...]) -> Path:
    """The same mp4 whose video track is shown by the upper left of this matrix, ``(a, b, c, d)``."""
    data = bytearray(path.read_bytes())
    start = data.find(b"tkhd") + 4 + (4 + 4 * 4 + 4 + 8 + 8)  # version 0: ISO 14496-12, 8.3.2
    a, b, c, d = (value * 65536 for value in matrix)
    data[start : start + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 0x40000000)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    "matrix",
    [(1, 0, 0, 1), (0, 1, -1, 0), (-1, 0, 0, -1), (0, -1, 1, 0), (-1, 0, 0, 1), (1, 0, 0, -1), (0, 1, 1, 0), (0, -1, -1, 0)],
    ids=["upright", "right", "over", "left", "mirrored", "flipped", "transposed", "transversed"],
)
def test_pictures_are_turned_as_the_file_says(tmp_path: Path, matrix: tuple[int, int, int, int]) -> None:
    stored = np.full((32, 64), 40, dtype=np.uint8)
    stored[:16, :32], stored[:16, 32:] = 220, 130  # the corners: upper left, upper right
    path = write_mp4(tmp_path / "a.mp4", np.repeat(stored[None, ..., None], 3, axis=3))
    found = read_frames(with_matrix(path, matrix), 25).pixels[0, :, :, 0].astype(int)
    a, b, c, d = matrix
    height, width = (32, 64) if a else (64, 32)
    assert found.shape == (height, width)
    for y in (4, 12, 28):
        for x in (4, 28, 60):
            across, down = a * x + c * y, b * x + d * y  # of a corner at 0, 0, about which it is turned
            place = down if b + d > 0 else height - 1 + down, across if a + c > 0 else width - 1 + across
            assert abs(found[place] - int(stored[y, x])) < 12, (x, y)


def test_pictures_turned_by_half_a_right_angle_are_refused(tmp_path: Path) -> None:
    path = with_matrix(write_mp4(tmp_path / "a.mp4", grey([50] * 5)), (1, 1, -1, 1))
    with pytest.raises(MediaError) as caught:
        read_frames(path, 25)
    check(caught.value, path, "odd_pictures")


@pytest.mark.parametrize("channels", [2, 8, 9, 64])
def test_the_mean_of_many_channels_is_read(tmp_path: Path, channels: int) -> None:
    path, samples = tmp_path / "array.wav", np.zeros((16_000, channels))
    samples[:, -1] = tone(440, 1.0, 16_000)
    samples[:, 0] = tone(300, 1.0, 16_000)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(np.round(samples * 32767).astype("<i2").tobytes())
    np.testing.assert_allclose(read_audio(path), samples.mean(axis=1), atol=2e-4)


@pytest.mark.parametrize(("second", "read"), [(-1.0, False), (-0.95, False), (0.0, True), (-0.2, True), (1.0, True)])
def test_channels_that_cancel_one_another_are_no_silence(tmp_path: Path, second: float, read: bool) -> None:
    sound = tone(440, 0.5, 16_000)
    path = write_wav(tmp_path / "a.wav", np.stack([sound, second * sound]))
    if read:
        assert np.allclose(read_audio(path), (1 + second) / 2 * sound, atol=1e-3)
        return
    with pytest.raises(MediaError, match="opposite polarity") as caught:
        read_audio(path)
    check(caught.value, path, "odd_sound")


def test_silence_in_two_channels_is_silence(tmp_path: Path) -> None:
    assert not read_audio(write_wav(tmp_path / "a.wav", np.zeros((2, 8000)))).any()
