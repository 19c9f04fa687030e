"""Fixtures of the commands' tests."""

from pathlib import Path

import pytest

from tests.cli.running import result
from tests.evaluation.images import SIZE, other, real, small  # noqa: F401


@pytest.fixture(scope="module")
def reference(small: None, real: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    """The statistics of the real images, in the features of a small Inception."""
    folder = tmp_path_factory.mktemp("reference")
    own = ("--features", "tiny_inception", "--workers", 0)
    result("evaluate", "reference", "--data", real, "--size", SIZE, "--to", folder / "ref.npz", *own, "--out", folder)
    assert [one.name for one in folder.iterdir()] == ["ref.npz"]
    return folder / "ref.npz"
