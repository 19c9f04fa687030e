"""ADM's `.npz` files of generated images and of statistics of real ones.

Images are `arr_0` (N × H × W × 3, 8-bit), statistics `mu` and `sigma`, and `mu_s` and `sigma_s` for sFID. Images are
read from disk a batch at a time, however many there are.
"""

import json
import math
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from softvq.errors import DataError
from softvq.files import atomic, checksum

_IMAGES = "arr_0"
STATISTICS = ("mu", "sigma", "mu_s", "sigma_s")
PROTOCOL = "protocol"  # ours: what the statistics are a function of, as JSON
_DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError)


class ArrayFile:
    """An `.npz` file with images, statistics, or both.

    Raise `DataError`, one sentence, when it is none of these.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            with zipfile.ZipFile(path) as archive:
                self.names = [name[:-4] for name in archive.namelist() if name.endswith(".npy")]
        except FileNotFoundError:
            raise DataError(f"there is no file {path}.") from None
        except (OSError, *_DAMAGED) as error:
            raise DataError(f"{path} is truncated or no .npz file ({error}).") from error
        if _IMAGES not in self.names and not {"mu", "sigma"} <= set(self.names):
            raise DataError(
                f"{path} holds {', '.join(self.names) or 'nothing'}; expected images (arr_0) or statistics (mu, sigma)."
            )

    @cached_property
    def checksum(self) -> str:
        """The first 16 hex digits of the file's SHA-256."""
        return checksum(self.path)

    @cached_property
    def shape(self) -> tuple[int, int, int]:
        """The number of images, their height and width; `DataError` when they are no 8-bit images in ADM's order."""
        if _IMAGES not in self.names:
            raise DataError(f"{self.path} holds statistics, but no images (arr_0).")
        with self._open(_IMAGES) as (_, shape, kind, fortran):
            if len(shape) == 4 and shape[1] == 3 and shape[3] != 3:
                raise DataError(
                    f"{self.path}: arr_0 is N × 3 × H × W {shape}; ADM's order is N × H × W × 3: "
                    "use arr_0.transpose(0, 2, 3, 1)."
                )
            if len(shape) != 4 or shape[3] != 3:
                raise DataError(f"{self.path}: arr_0 has shape {shape}; expected N × H × W × 3.")
            if fortran:
                raise DataError(f"{self.path}: arr_0 lies in Fortran's order; save numpy.ascontiguousarray(arr_0).")
            if kind != np.uint8:
                raise DataError(
                    f"{self.path}: arr_0 is {kind}; expected 8-bit images (uint8, 0 to 255); scale and round them."
                )
            if not shape[0]:
                raise DataError(f"{self.path}: arr_0 holds no images.")
            return shape[:3]

    @property
    def side(self) -> int | None:
        """The images' height in pixels, or that of the images that the statistics say they are of; None if unknown."""
        return self.shape[1] if _IMAGES in self.names else self.protocol.get("size")

    def images(self, first: int, last: int, batch_size: int) -> Iterator[UInt8[Tensor, "B 3 H W"]]:
        """Yield the images `first` … `last` − 1 in batches, (B, 3, H, W)."""
        _, height, width = self.shape
        size = height * width * 3
        with self._open(_IMAGES) as (file, *_):
            file.seek(file.tell() + first * size)
            for at in range(first, last, batch_size):
                count = min(last, at + batch_size) - at
                pixels = np.frombuffer(file.read(count * size), dtype=np.uint8)
                if len(pixels) != count * size:
                    raise DataError(f"{self.path} is cut off inside arr_0.")
                yield torch.from_numpy(pixels.copy()).view(count, height, width, 3).permute(0, 3, 1, 2)

    def statistics(self) -> dict[str, np.ndarray]:
        """Return the `STATISTICS` that the file has, in float64; `DataError` when they fit no features."""
        try:
            with np.load(self.path, allow_pickle=False) as file:
                arrays = {name: np.asarray(file[name], dtype=np.float64) for name in STATISTICS if name in self.names}
        except _DAMAGED as error:
            raise DataError(f"{self.path} is damaged ({error}).") from error
        except (ValueError, TypeError) as error:
            raise DataError(f"{self.path} holds no plain numbers ({error}).") from error
        for mean, covariance in (("mu", "sigma"), ("mu_s", "sigma_s")):
            if (mean in arrays) != (covariance in arrays):
                raise DataError(f"{self.path} has only one of {mean} and {covariance}.")
            if mean in arrays and (arrays[mean].ndim != 1 or arrays[covariance].shape != 2 * arrays[mean].shape):
                shapes = f"{arrays[mean].shape} and {arrays[covariance].shape}"
                raise DataError(f"{self.path}: {mean} and {covariance} have shapes {shapes}, which do not fit.")
        return arrays

    @property
    def protocol(self) -> dict:
        """The settings that its statistics were made with, empty when the file does not say so."""
        if PROTOCOL not in self.names:
            return {}
        try:
            with np.load(self.path, allow_pickle=False) as file:
                settings = json.loads(str(file[PROTOCOL]))
        except (ValueError, *_DAMAGED) as error:
            raise DataError(f"{self.path}: {PROTOCOL} cannot be read ({error}).") from error
        if not isinstance(settings, dict):
            raise DataError(f"{self.path}: {PROTOCOL} must be a JSON object.")
        return settings

    @contextmanager
    def _open(self, name: str):
        """Yield the member's file behind its header, its shape, type, and whether it is in Fortran's order."""
        try:
            with zipfile.ZipFile(self.path) as archive, archive.open(f"{name}.npy") as file:
                try:
                    version = np.lib.format.read_magic(file)
                    first = version == (1, 0)
                    read = np.lib.format.read_array_header_1_0 if first else np.lib.format.read_array_header_2_0
                    shape, fortran, kind = read(file)
                except ValueError as error:
                    raise DataError(f"{self.path}: {name} is no array ({error}).") from error
                yield file, shape, kind, fortran
        except _DAMAGED as error:
            raise DataError(f"{self.path} is damaged inside {name} ({error}).") from error


def write_arrays(
    path: Path, shape: tuple[int, int, int], images: Iterable[UInt8[np.ndarray, "_ H W 3"]], **others: np.ndarray
) -> None:
    """Write images that come in batches, and other arrays, into one file, atomically.

    The images become `arr_0`; `shape` is (N, H, W). Raise `DataError` when there are not N of them.
    """
    with (
        atomic(path, 3 * math.prod(shape) + sum(array.nbytes for array in others.values())) as partial,
        zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive,
    ):
        with archive.open(f"{_IMAGES}.npy", "w", force_zip64=True) as file:
            header = {"descr": "|u1", "fortran_order": False, "shape": (*shape, 3)}
            np.lib.format.write_array_header_1_0(file, header)
            count = 0
            for batch in images:
                file.write(np.ascontiguousarray(batch).tobytes())
                count += len(batch)
        if count != shape[0]:
            raise DataError(f"{path} was not written: there were {count} images instead of {shape[0]}.")
        for name, array in others.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.save(file, array)
