"""Gradients and flow of pictures whose shape and movement are known."""

from pathlib import Path

import numpy as np
import pytest

from llm_mer.data.schema import Frames
from llm_mer.errors import UserError
from llm_mer.features.visual import CELL, ORIENTATIONS, SIDE, FaceRegion, HogFlow, Landmarks

CELLS = SIDE // CELL
HOG = CELLS * CELLS * ORIENTATIONS


@pytest.fixture(scope="module")
def hog_flow() -> HogFlow:
    return HogFlow()


def texture(dx: float, dy: float, steps: int, side: int = SIDE, fps: float = 6.0) -> Frames:
    """Smooth blobs that move by ``(dx, dy)`` pixels a frame, without an edge: a sum of plane waves."""
    generator = np.random.default_rng(5)
    y, x = np.mgrid[:side, :side].astype(float) * SIDE / side
    waves = [(*generator.uniform(-0.5, 0.5, 2), generator.uniform(0, 2 * np.pi)) for _ in range(12)]
    pictures = []
    for i in range(steps):
        u, v = x - dx * i * SIDE / side, y - dy * i * SIDE / side
        value = sum(np.sin(a * u + b * v + phase) for a, b, phase in waves)
        pictures.append(np.repeat((128 + 14 * value).clip(0, 255).astype(np.uint8)[..., None], 3, axis=2))
    return Frames(np.stack(pictures), fps)


def flow(features: np.ndarray) -> np.ndarray:
    """Mean ``(dx, dy, speed)`` of the inner cells at each frame after the first."""
    return features[1:, HOG:].reshape(-1, CELLS, CELLS, 3)[:, 1:-1, 1:-1].mean(axis=(1, 2))


# --- HogFlow ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(5, 48, 48), (3, 96, 96), (1, 120, 80), (2, 33, 200)])
def test_features_are_396_a_frame_with_a_name_each(hog_flow: HogFlow, shape: tuple[int, int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    features = hog_flow(Frames(pixels, 6.0))
    assert features.shape == (shape[0], 396)
    assert features.dtype == np.float32
    assert np.isfinite(features).all()
    assert len(hog_flow.names) == len(set(hog_flow.names)) == 396
    assert (hog_flow.names[0], hog_flow.names[HOG], hog_flow.names[-1]) == ("hog_00_0", "flow_00_dx", "flow_55_speed")


@pytest.mark.parametrize(("dx", "dy"), [(1.5, 0), (-1.5, 0), (0, 1.5), (0, -1.5), (1, -1), (3, 0)])
@pytest.mark.parametrize("fps", [6.0, 25.0])
def test_flow_is_the_movement_in_face_widths_a_second(hog_flow: HogFlow, dx: float, dy: float, fps: float) -> None:
    found = flow(hog_flow(texture(dx, dy, 4, fps=fps)))
    speed = np.hypot(dx, dy) * fps / SIDE
    np.testing.assert_allclose(found[:, 2], speed, rtol=0.25)
    np.testing.assert_allclose(found[:, 0], dx * fps / SIDE, atol=0.25 * speed)
    np.testing.assert_allclose(found[:, 1], dy * fps / SIDE, atol=0.25 * speed)


def test_flow_does_not_depend_on_the_size_of_the_picture(hog_flow: HogFlow) -> None:
    small, big = flow(hog_flow(texture(1.5, 0, 3))), flow(hog_flow(texture(3, 0, 3, side=96)))
    np.testing.assert_allclose(big, small, atol=0.25 * 1.5 * 6 / SIDE)


def test_flow_is_named_by_row_and_column_of_its_cell(hog_flow: HogFlow) -> None:
    pixels = texture(0, 0, 2).pixels.copy()
    pixels[1, 32:, :16] = texture(1.5, 0, 2).pixels[1, 32:, :16]  # only the lower left moves
    features = hog_flow(Frames(pixels, 6.0))[1]
    values = dict(zip(hog_flow.names, features, strict=True))
    assert values["flow_50_speed"] > 10 * max(values["flow_05_speed"], values["flow_00_speed"], values["flow_55_speed"])


def test_the_first_frame_has_no_flow(hog_flow: HogFlow) -> None:
    features = hog_flow(texture(2, 1, 3))
    assert (features[0, HOG:] == 0).all()
    assert (features[1, HOG:] != 0).any()


def test_a_static_clip_has_no_flow_and_a_constant_shape(hog_flow: HogFlow) -> None:
    features = hog_flow(texture(0, 0, 4))
    np.testing.assert_allclose(features[:, HOG:], 0, atol=1e-3)  # a hundredth of a pixel a frame
    np.testing.assert_array_equal(features[1:, :HOG], features[:-1, :HOG])


def test_a_grey_picture_gives_zeros(hog_flow: HogFlow) -> None:
    assert (hog_flow(Frames(np.full((2, 64, 64, 3), 90, np.uint8), 6.0)) == 0).all()


def test_hog_does_not_change_with_a_brightness_offset(hog_flow: HogFlow) -> None:
    pixels = np.clip(texture(1, 0, 2).pixels, 10, 200)
    dark, bright = (hog_flow(Frames(p, 6.0))[:, :HOG] for p in (pixels, pixels + np.uint8(40)))
    np.testing.assert_allclose(bright, dark, atol=1e-6)


def test_hog_changes_with_the_shape_and_follows_the_direction_of_an_edge(hog_flow: HogFlow) -> None:
    stripes = np.zeros((48, 48, 3), np.uint8)
    stripes[:, ::8] = stripes[:, 1::8] = 200
    upright, lying = hog_flow(Frames(np.stack([stripes, stripes.transpose(1, 0, 2)]), 6.0))[:, :HOG]
    upright, lying = (h.reshape(-1, ORIENTATIONS).sum(axis=0) for h in (upright, lying))
    assert abs(int(upright.argmax()) - int(lying.argmax())) == ORIENTATIONS // 2


# --- the face region --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width", "top", "left"), [(60, 100, 0, 20), (100, 60, 20, 0), (50, 50, 0, 0)])
def test_without_a_model_the_region_is_the_centred_square(height: int, width: int, top: int, left: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, height, width, 3), dtype=np.uint8)
    side = min(height, width)
    np.testing.assert_array_equal(FaceRegion(None)(pixels), pixels[:, top : top + side, left : left + side])


class OneFace:
    """A detector that sees ``boxes`` (x, y, w, h) in the second frame only."""

    def __init__(self, boxes: list[tuple[float, ...]]) -> None:
        self.boxes, self.calls = boxes, 0

    def setInputSize(self, size: tuple[int, int]) -> None:
        self.size = size

    def detect(self, frame: np.ndarray) -> tuple[int, np.ndarray | None]:
        assert frame.shape[1::-1] == self.size
        self.calls += 1
        return 1, np.array(self.boxes) if self.calls == 2 and self.boxes else None


def region_of(boxes: list[tuple[float, ...]]) -> FaceRegion:
    region = FaceRegion(None)
    region._detector = OneFace(boxes)
    return region


def test_the_largest_face_found_is_cropped_as_a_square_with_a_margin_in_every_frame() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 100, 200, 3), dtype=np.uint8)
    crop = region_of([(10, 10, 8, 9), (100, 30, 30, 40)])(pixels)
    np.testing.assert_array_equal(crop, pixels[:, 24:76, 89:141])  # 1.3 x 40 around (115, 50)


def test_a_face_at_the_border_is_cropped_inside_the_frame() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 100, 200, 3), dtype=np.uint8)
    np.testing.assert_array_equal(region_of([(-5, -5, 40, 40)])(pixels), pixels[:, :52, :52])


def test_where_no_face_is_found_the_region_is_the_centred_square() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 60, 100, 3), dtype=np.uint8)
    np.testing.assert_array_equal(region_of([])(pixels), pixels[:, :, 20:80])


def test_a_face_model_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--face-model .*yunet\.onnx: no such file"):
        HogFlow(str(tmp_path / "yunet.onnx"))


def test_a_face_model_that_is_no_model_is_named(tmp_path: Path) -> None:
    path = tmp_path / "yunet.onnx"
    path.write_text("not a network")
    with pytest.raises(UserError, match=r"yunet\.onnx"):
        HogFlow(str(path))


# --- Landmarks --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [None, "/nowhere/face_landmarker.task"])
def test_landmarks_without_a_model_file_say_which_option_is_missing(model: str | None) -> None:
    with pytest.raises(UserError, match="--landmark-model") as caught:
        Landmarks(model)
    assert repr(model) in str(caught.value)
