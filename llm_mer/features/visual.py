"""Visual descriptors of the face region in each frame."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np

from llm_mer.data.schema import Frames
from llm_mer.errors import UserError

SIDE = 48
CELL = 8
ORIENTATIONS = 8
MARGIN = 12


class VisualExtractor(Protocol):
    """Frames to ``(F, D)``."""

    names: list[str]

    def __call__(self, frames: Frames) -> np.ndarray: ...


class FaceRegion:
    """The largest face in the first frame that has one, as a square box for the whole clip.

    Uses OpenCV's YuNet with a model file supplied by the user (OpenCV ships none); without a model, or if no face is found,
    the region is the centred square of the frame.
    """

    def __init__(self, model: str | None) -> None:
        self.model = model
        self._detector: Any = None
        if model is not None:
            if not Path(model).is_file():
                raise UserError(f"--face-model {model}: no such file; it is an ONNX file of OpenCV's YuNet face detector")
            import cv2

            try:
                self._detector = cv2.FaceDetectorYN.create(model, "", (320, 320), 0.6)
            except cv2.error as error:
                raise UserError(f"--face-model {model}: OpenCV cannot read it as a YuNet ONNX file: {error.err}") from None

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """Crop ``(F, h, w, 3)`` to the region."""
        height, width = pixels.shape[1:3]
        side = min(height, width)
        x, y = (width - side) // 2, (height - side) // 2
        if self._detector is not None:
            self._detector.setInputSize((width, height))
            for frame in pixels:
                _, faces = self._detector.detect(np.ascontiguousarray(frame[..., ::-1]))
                if faces is not None and len(faces):
                    left, top, w, h = max(faces, key=lambda f: f[2] * f[3])[:4]
                    side = int(min(1.3 * max(w, h), height, width))
                    x = int(np.clip(left + w / 2 - side / 2, 0, width - side))
                    y = int(np.clip(top + h / 2 - side / 2, 0, height - side))
                    break
        return pixels[:, y : y + side, x : x + side]


class HogFlow:
    """Shape and movement of the face: histograms of oriented gradients, and optical flow from the previous frame.

    The region is scaled to 48 × 48 grey. HOG (scikit-image): 8 orientations in cells of 8 × 8, each cell normalised
    separately, ``288`` values. Flow (OpenCV, Farnebäck): mean ``(dx, dy, speed)`` in each cell, ``108`` values, zero in the
    first frame. Output ``(F, 396)``.
    """

    def __init__(self, face_model: str | None = None) -> None:
        try:
            import cv2
            import skimage.feature
        except ImportError:
            raise UserError("--vision hog_flow needs OpenCV and scikit-image: pip install 'llm-mer[media]'") from None
        self._cv2: Any = cv2
        self._hog: Any = skimage.feature.hog
        self.region = FaceRegion(face_model)
        cells = SIDE // CELL
        places = [f"{row}{column}" for row in range(cells) for column in range(cells)]
        self.names = [f"hog_{p}_{o}" for p in places for o in range(ORIENTATIONS)]
        self.names += [f"flow_{p}_{part}" for p in places for part in ("dx", "dy", "speed")]

    def __call__(self, frames: Frames) -> np.ndarray:
        cv2 = self._cv2
        rows = []
        previous: np.ndarray | None = None
        for picture in self.region(frames.pixels):
            grey = cv2.cvtColor(np.ascontiguousarray(picture), cv2.COLOR_RGB2GRAY)
            grey = cv2.resize(grey, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
            shape = self._hog(grey, ORIENTATIONS, (CELL, CELL), (1, 1), block_norm="L2", feature_vector=True)
            rows.append(np.concatenate([shape, self._cell_flow(previous, grey, frames.fps)]))
            previous = grey
        return np.stack(rows).astype(np.float32)

    def _cell_flow(self, previous: np.ndarray | None, grey: np.ndarray, fps: float) -> np.ndarray:
        """Mean flow of each cell in face widths per second, independent of the sampling rate: ``(108,)``."""
        cells = SIDE // CELL
        if previous is None:
            return np.zeros(cells * cells * 3)
        # OpenCV's Farnebäck reports movement in the last row and column even of a still image, so these are padding.
        pair = (self._cv2.copyMakeBorder(p, 0, MARGIN, 0, MARGIN, self._cv2.BORDER_REFLECT_101) for p in (previous, grey))
        flow = self._cv2.calcOpticalFlowFarneback(*pair, None, 0.5, 2, 9, 3, 5, 1.1, 0)[:SIDE, :SIDE] * (fps / SIDE)
        field = np.concatenate([flow, np.linalg.norm(flow, axis=-1, keepdims=True)], axis=-1)  # (48, 48, 3)
        return field.reshape(cells, CELL, cells, CELL, 3).mean(axis=(1, 3)).reshape(-1)


class Landmarks:
    """MediaPipe's face landmarks and blend shapes with a model file supplied by the user (``face_landmarker.task``).

    52 blend-shape scores and 478 landmarks in ``x, y`` relative to the nose and the distance of the eyes: ``(F, 1008)``.
    A frame without a face repeats the previous one; a clip without any face is an error.
    """

    POINTS, BLEND, NOSE, LEFT, RIGHT = 478, 52, 1, 33, 263

    def __init__(self, model: str | None) -> None:
        if model is None or not Path(model).is_file():
            raise UserError(
                f"--vision landmarks needs --landmark-model, a face_landmarker.task file of MediaPipe; found {model!r}"
            )
        try:
            import mediapipe as mp
        except ImportError:
            raise UserError("--vision landmarks needs MediaPipe: pip install 'llm-mer[landmarks]'") from None
        vision = mp.tasks.vision
        options = vision.FaceLandmarkerOptions(
            base_options=mp.tasks.BaseOptions(model_asset_path=model), output_face_blendshapes=True, num_faces=1
        )
        self._mp: Any = mp
        self._landmarker: Any = vision.FaceLandmarker.create_from_options(options)
        self.names = [f"blend_{i}" for i in range(self.BLEND)]
        self.names += [f"landmark_{i}_{axis}" for i in range(self.POINTS) for axis in "xy"]

    def __call__(self, frames: Frames) -> np.ndarray:
        rows: list[np.ndarray] = []
        leading_missing = 0
        for picture in frames.pixels:
            image = self._mp.Image(image_format=self._mp.ImageFormat.SRGB, data=np.ascontiguousarray(picture))
            found = self._landmarker.detect(image)
            if not found.face_landmarks:
                leading_missing += not rows
                if rows:
                    rows.append(rows[-1])
                continue
            points = np.array([(p.x, p.y) for p in found.face_landmarks[0]])[: self.POINTS]
            width = np.linalg.norm(points[self.LEFT] - points[self.RIGHT]) + 1e-6
            blend = np.array([b.score for b in found.face_blendshapes[0]])[: self.BLEND]
            rows.append(np.concatenate([blend, ((points - points[self.NOSE]) / width).reshape(-1)]))
        if not rows:
            raise UserError("MediaPipe found no face in any frame")
        return np.stack([rows[0]] * leading_missing + rows).astype(np.float32)
