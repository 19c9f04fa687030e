"""ADM's `.npz` files: what numpy writes is read, a batch at a time, and what is wrong with a file is one sentence."""

import json
import pickle
import re
import struct
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from softvq.data.arrays import ArrayFile, write_arrays
from softvq.errors import DataError


def pixels(count: int = 11, height: int = 5, width: int = 4) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "arrays.npz"


def moments(width: int, names: tuple[str, str] = ("mu", "sigma")) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(width)
    return {names[0]: rng.standard_normal(width), names[1]: rng.standard_normal((width, width))}


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed], ids=["stored", "deflated"])
@pytest.mark.parametrize(("first", "last", "batch"), [(0, 11, 4), (3, 11, 7), (5, 6, 64), (10, 11, 1), (4, 4, 2)])
def test_images_are_read_in_batches_from_any_first_number(path: Path, save, first: int, last: int, batch: int):
    save(path, pixels())
    file = ArrayFile(path)
    assert file.shape == (11, 5, 4)
    batches = list(file.images(first, last, batch))
    assert [len(one) for one in batches] == [min(last, at + batch) - at for at in range(first, last, batch)]
    assert all(one.dtype == torch.uint8 and one.shape[1:] == (3, 5, 4) for one in batches)
    found = [image.permute(1, 2, 0).numpy() for one in batches for image in one]
    np.testing.assert_array_equal(np.array(found).reshape(-1, 5, 4, 3), pixels()[first:last])


def test_images_are_the_callers_own(path: Path):
    """Changing a batch changes nothing else, and nothing warns that it must not be written to."""
    np.savez(path, pixels())
    torch.set_warn_always(True)  # else once a process
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            (batch,) = ArrayFile(path).images(0, 2, 2)
    finally:
        torch.set_warn_always(False)
    batch.zero_()
    assert next(ArrayFile(path).images(0, 2, 2)).any()


def test_labels_and_other_arrays_do_not_matter(path: Path):
    np.savez(path, pixels(), np.arange(11), names=np.array(["a", "b"]))
    file = ArrayFile(path)
    assert file.names == ["names", "arr_0", "arr_1"]
    assert next(file.images(0, 3, 3)).shape == (3, 3, 5, 4)
    assert file.statistics() == {}
    assert file.protocol == {}


def test_a_later_version_of_numpys_header_is_read(path: Path):
    with zipfile.ZipFile(path, "w") as archive, archive.open("arr_0.npy", "w") as file:
        np.lib.format.write_array(file, pixels(), version=(2, 0))
    assert next(ArrayFile(path).images(9, 11, 5)).shape == (2, 3, 5, 4)


@pytest.mark.parametrize("kind", [np.float64, np.float32, np.float16])
def test_statistics_are_read_in_float64(path: Path, kind: type):
    arrays = {k: v.astype(kind) for k, v in (moments(6) | moments(4, ("mu_s", "sigma_s"))).items()}
    np.savez(path, **arrays, other=np.zeros(3))
    found = ArrayFile(path).statistics()
    assert set(found) == {"mu", "sigma", "mu_s", "sigma_s"}
    assert all(array.dtype == np.float64 for array in found.values())
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)


def test_a_file_of_statistics_has_no_images(path: Path):
    np.savez(path, **moments(6))
    assert set(ArrayFile(path).statistics()) == {"mu", "sigma"}
    with pytest.raises(DataError, match=r"arrays\.npz holds statistics, but no images \(arr_0\)\.$"):
        _ = ArrayFile(path).shape


def test_the_checksum_is_of_the_whole_file(path: Path, tmp_path: Path):
    np.savez(path, pixels())
    copy = tmp_path / "other name.npz"
    copy.write_bytes(path.read_bytes())
    first = ArrayFile(path).checksum
    assert ArrayFile(copy).checksum == first
    assert len(first) == 16
    changed = pixels()
    changed[-1, -1, -1, -1] ^= 1
    np.savez(path, changed)
    assert ArrayFile(path).checksum != first


# What is wrong is a sentence


def refusal(path: Path) -> str:
    """The one sentence that is said, with the file's name, to who asks for its images."""
    with pytest.raises(DataError) as error:
        list(ArrayFile(path).images(0, 1, 1))
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_no_file_no_zip_and_a_truncated_file(path: Path, tmp_path: Path):
    assert re.search(r"there is no file .*arrays\.npz\.$", refusal(path))
    assert re.search("is truncated or no .npz file", refusal(tmp_path))  # a folder
    path.write_bytes(b"no zip at all")
    assert re.search("is truncated or no .npz file", refusal(path))
    path.write_bytes(b"")
    assert re.search("is truncated or no .npz file", refusal(path))
    np.save(path.with_suffix(".npy"), pixels())
    path.write_bytes(path.with_suffix(".npy").read_bytes())
    assert re.search("is truncated or no .npz file", refusal(path))
    np.savez(path, pixels())
    path.write_bytes(path.read_bytes()[:-100])
    assert re.search("is truncated or no .npz file", refusal(path))


def test_an_archive_without_arrays_of_ours(path: Path):
    zipfile.ZipFile(path, "w").close()
    assert re.search(r"holds nothing; expected images \(arr_0\) or statistics \(mu, sigma\)", refusal(path))
    np.savez(path, labels=np.arange(3), mu=np.zeros(3))
    assert re.search(r"holds labels, mu; expected images", refusal(path))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("arr_0", "not an array's name")
    assert re.search(r"expected images \(arr_0\)", refusal(path))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (pixels().transpose(0, 3, 1, 2).copy(), r"arr_0 is N × 3 × H × W \(11, 3, 5, 4\); .* arr_0.transpose\(0, 2, 3"),
        (pixels().astype(np.float32) / 255, r"arr_0 is float32; expected 8-bit images \(uint8, 0 to 255\)"),
        (pixels().astype(np.int64), "arr_0 is int64; expected 8-bit images"),
        (pixels().astype(np.int16) * 4 - 300, "arr_0 is int16; expected 8-bit images"),
        (pixels().astype(np.int8), "arr_0 is int8; expected 8-bit images"),
        (pixels()[0], r"arr_0 has shape \(5, 4, 3\); expected N × H × W × 3"),
        (pixels()[..., 0], r"arr_0 has shape \(11, 5, 4\); expected N × H × W × 3"),
        (pixels()[..., None], r"arr_0 has shape \(11, 5, 4, 3, 1\)"),
        (pixels()[..., :2], r"arr_0 has shape \(11, 5, 4, 2\)"),
        (np.concatenate([pixels(), pixels()[..., :1]], -1), r"arr_0 has shape \(11, 5, 4, 4\)"),
        (np.uint8(3), r"arr_0 has shape \(\)"),
        (np.asfortranarray(pixels()), r"arr_0 .*Fortran"),
        (pixels()[:0], "arr_0 holds no images"),
    ],
)
def test_arrays_that_are_no_images_in_adms_order(path: Path, array: np.ndarray, message: str):
    np.savez(path, array)
    assert re.search(message, refusal(path))


class Trap:
    """Unpickling one writes a file."""

    def __init__(self, mark: str):
        self.mark = mark

    def __reduce__(self):
        return (open, (self.mark, "w"))


@pytest.mark.parametrize("shape", [(4,), (1, 2, 2, 3)])
def test_pickled_objects_are_refused_and_never_unpickled(path: Path, tmp_path: Path, shape: tuple[int, ...]):
    mark = tmp_path / "unpickled"
    trap = np.empty(shape, dtype=object)
    trap[...] = Trap(str(mark))
    np.savez(path, trap)
    assert re.search("arr_0 (has shape|is object)", refusal(path))
    np.savez(path, mu=trap, sigma=trap)
    with pytest.raises(DataError, match="holds no plain numbers"):
        ArrayFile(path).statistics()
    np.savez(path, pixels(), protocol=trap)
    with pytest.raises(DataError, match=r"arrays\.npz: protocol"):
        _ = ArrayFile(path).protocol
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("arr_0.npy", pickle.dumps(Trap(str(mark))))
    assert re.search(r"arr_0 is no array", refusal(path))
    assert not mark.exists()
    pickle.loads(pickle.dumps(Trap(str(mark)))).close()
    assert mark.exists()  # the trap works


@pytest.mark.parametrize("text", ["no JSON", "[1, 2]", '"words"'])
def test_a_protocol_that_is_no_object(path: Path, text: str):
    np.savez(path, **moments(3), protocol=text)
    with pytest.raises(DataError, match=r"arrays\.npz: protocol"):
        _ = ArrayFile(path).protocol


def test_statistics_that_do_not_belong_together(path: Path):
    def found(**arrays: np.ndarray) -> dict[str, np.ndarray]:
        np.savez(path, **arrays)
        return ArrayFile(path).statistics()

    six, four = moments(6), moments(4, ("mu_s", "sigma_s"))
    with pytest.raises(DataError, match="has only one of mu and sigma"):
        found(arr_0=pixels(), mu=six["mu"])
    for name in four:
        with pytest.raises(DataError, match="has only one of mu_s and sigma_s"):
            found(**six, **{name: four[name]})
    for mean, covariance in (((6,), (5, 5)), ((6,), (6,)), ((6,), (6, 5)), ((2, 3), (2, 3, 2, 3)), ((), ())):
        with pytest.raises(DataError, match=rf"mu and sigma have shapes \({', '.join(map(str, mean))}"):
            found(mu=np.zeros(mean), sigma=np.zeros(covariance))
    with pytest.raises(DataError, match="mu_s and sigma_s have shapes"):
        found(**six, mu_s=four["mu_s"], sigma_s=six["sigma"])
    with pytest.raises(DataError, match="holds no plain numbers"):
        found(mu=np.array(["a", "b"]), sigma=np.zeros((2, 2)))


@pytest.mark.parametrize("place", ["first", "middle"])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed], ids=["stored", "deflated"])
def test_bytes_that_changed_on_the_way(path: Path, save, place: str):
    """What cannot be inflated, or is no array any more; else the checksum that the archive has of each array says so,
    when it has been read to its end."""
    save(path, pixels(200), **moments(6))
    whole = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        for one in archive.infolist():
            name_and_extra = struct.unpack_from("<HH", whole, one.header_offset + 26)
            start = one.header_offset + 30 + sum(name_and_extra)
            whole[start if place == "first" else start + one.compress_size // 2] ^= 0xFF
    path.write_bytes(whole)
    with pytest.raises(DataError, match=r"arrays\.npz.* (is damaged inside arr_0|is no array|is cut off inside arr_0)"):
        list(ArrayFile(path).images(0, 200, 64))
    with pytest.raises(DataError, match=r"arrays\.npz (is damaged|holds no plain numbers)"):
        ArrayFile(path).statistics()


def test_an_array_that_ends_before_its_header_says(path: Path):
    with zipfile.ZipFile(path, "w") as archive, archive.open("arr_0.npy", "w") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": (11, 5, 4, 3)})
        file.write(pixels()[:8].tobytes())
    file = ArrayFile(path)
    assert sum(map(len, file.images(0, 8, 3))) == 8
    with pytest.raises(DataError, match=r"arrays\.npz is cut off inside arr_0"):
        list(file.images(0, 11, 3))


# Writing


def batches(array: np.ndarray, size: int = 4) -> Iterator[np.ndarray]:
    yield from (array[at : at + size] for at in range(0, len(array), size))


def test_what_is_written_is_read_by_us_and_by_numpy(path: Path):
    told, statistics = {"size": 5, "data": "Bilder/ä"}, moments(6) | moments(4, ("mu_s", "sigma_s"))
    path = path.parent / "new folder" / path.name
    write_arrays(
        path, (11, 5, 4), batches(pixels()), **statistics, protocol=np.array(json.dumps(told)), arr_1=np.arange(11)
    )
    file = ArrayFile(path)
    assert file.shape == (11, 5, 4)
    found = torch.cat(list(file.images(0, 11, 3))).permute(0, 2, 3, 1).numpy()
    np.testing.assert_array_equal(found, pixels())
    assert file.protocol == told
    for name, array in statistics.items():
        np.testing.assert_array_equal(file.statistics()[name], array)
    with np.load(path) as loaded:
        np.testing.assert_array_equal(loaded["arr_0"], pixels())
        np.testing.assert_array_equal(loaded["arr_1"], np.arange(11))
        np.testing.assert_array_equal(loaded["sigma_s"], statistics["sigma_s"])
        assert set(loaded.files) == {"arr_0", "arr_1", "protocol", *statistics}
    assert [one.name for one in path.parent.iterdir()] == [path.name]


def test_images_in_another_order_of_memory_are_written_as_they_are(path: Path):
    write_arrays(path, (11, 5, 4), (np.asfortranarray(batch) for batch in batches(pixels())))
    np.testing.assert_array_equal(np.load(path)["arr_0"], pixels())


def test_a_failure_leaves_nothing_behind_and_what_was_there(path: Path):
    def failing() -> Iterator[np.ndarray]:
        yield pixels()[:4]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_arrays(path, (11, 5, 4), failing())
    assert list(path.parent.iterdir()) == []
    write_arrays(path, (11, 5, 4), batches(pixels()))
    before = path.read_bytes()
    with pytest.raises(KeyboardInterrupt):
        write_arrays(path, (11, 5, 4), failing())
    assert path.read_bytes() == before
    assert [one.name for one in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("count", [10, 12])
def test_images_that_are_not_as_many_as_said_are_not_written(path: Path, count: int):
    """The header is written before them; numpy could not read the file."""
    with pytest.raises(DataError, match=rf"{count} images instead of 11"):
        write_arrays(path, (11, 5, 4), batches(pixels(count)))
    assert list(path.parent.iterdir()) == []
