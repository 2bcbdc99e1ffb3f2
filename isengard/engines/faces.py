"""Whose face it is: OpenCV's YuNet finds faces, SFace tells them apart. Both run on the CPU, in tens of milliseconds.

Sources: Wu et al., "YuNet: A Tiny Millisecond-level Face Detector" (2023); Zhong et al., "SFace: Sigmoid-constrained
Hypersphere Loss for Robust Face Recognition" (2021). The weights are OpenCV Zoo's, 8-bit in blocks; see NOTICE.
"""

import hashlib
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image, Resampling

from isengard.domain.identity import Box, Sighting
from isengard.errors import MissingWeights

SHA256 = {
    "yunet.onnx": "49f000ec501fef24739071fc7e68267d32209045b6822c0c72dce1da25726f10",
    "sface.onnx": "fb143eea07838aa532d1c95df5f69899974ea0140e1fba05e94204be13ed74ee",
}
#: Larger pictures are made smaller before faces are sought: YuNet knows faces of up to some hundred pixels.
LONGEST_SIDE = 1024
#: Where no face is found: one that fills the picture is seen when that is as small.
CLOSE_UP_SIDE = 400
MIN_CONFIDENCE = 0.7
#: Pixels of the whole picture. Smaller faces are found, but not told apart reliably.
MIN_FACE = 30

Pixels = NDArray[np.uint8]


class FaceScorer:
    """An `IdentityScorer` for photographs of people. May be used by several threads, one after the other."""

    def __init__(self, folder: Path) -> None:
        """``folder``: of the two files. Raises: MissingWeights when one is absent or another than it should be."""
        for name, wanted in SHA256.items():
            _check(folder / name, wanted)
        self._detector: Any = cv2.FaceDetectorYN.create(
            str(folder / "yunet.onnx"), "", (320, 320), MIN_CONFIDENCE
        )
        self._recognizer: Any = cv2.FaceRecognizerSF.create(str(folder / "sface.onnx"), "")
        self._turn = threading.Lock()  # both keep their last picture

    def find(self, images: Sequence[Image]) -> Sequence[tuple[Sighting, ...]]:
        """See `IdentityScorer.find`."""
        with self._turn:
            return [self._faces(image) for image in images]

    def _faces(self, image: Image) -> tuple[Sighting, ...]:
        return self._faces_at(LONGEST_SIDE, image) or self._faces_at(CLOSE_UP_SIDE, image)

    def _faces_at(self, longest_side: int, image: Image) -> tuple[Sighting, ...]:
        scale = min(1.0, longest_side / max(image.size))
        plain = image.convert("RGB")
        if scale < 1:
            size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
            plain = plain.resize(size, Resampling.LANCZOS)
        pixels: Pixels = np.ascontiguousarray(np.asarray(plain)[:, :, ::-1])
        self._detector.setInputSize((pixels.shape[1], pixels.shape[0]))
        _, rows = self._detector.detect(pixels)
        found = [self._sighting(pixels, row, scale) for row in (() if rows is None else rows)]
        return tuple(sorted(found, key=lambda one: -one.box.width * one.box.height))

    def _sighting(self, pixels: Pixels, row: NDArray[np.float32], scale: float) -> Sighting:
        left, top, width, height = (float(value) / scale for value in row[:4])
        feature = self._recognizer.feature(self._recognizer.alignCrop(pixels, row))[0]
        return Sighting(
            box=Box(left=left, top=top, width=width, height=height),
            confidence=float(row[14]),
            embedding=tuple((feature / np.linalg.norm(feature)).tolist()),
            turn=_turn(row[4:14].reshape(5, 2)),
            reliable=min(width, height) >= MIN_FACE,
        )


def _turn(landmarks: NDArray[np.float32]) -> float:
    """How far a face is turned to the side: 0 from the front, about 1 and more in profile.

    ``landmarks``: (5, 2), of the eyes, the nose's tip and the corners of the mouth. Where the nose is between the eyes,
    measured along their line in halves of their distance, holds for tilted heads, too.
    """
    one, other, nose = landmarks[0], landmarks[1], landmarks[2]
    between = other - one
    length = float(np.linalg.norm(between))
    if length == 0:
        return 1.0
    along = float(np.dot(nose - (one + other) / 2, between)) / length
    return abs(along) / (length / 2)


def _check(file: Path, wanted: str) -> None:
    way_out = "install Isengard anew, or get the file from its repository"
    try:
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError as error:
        raise MissingWeights(f"{file} cannot be read ({error.strerror}): {way_out}") from error
    if digest != wanted:
        raise MissingWeights(f"{file} is not the file it should be (sha256 {digest[:12]}…): {way_out}")
