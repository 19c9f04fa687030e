"""Inception: its resizing and its files. `tests/reference` compares it with torch-fidelity's."""

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from softvq.errors import ModelError
from softvq.pretrained import inception
from softvq.pretrained.inception import TINY, Inception, resized


@pytest.fixture(scope="module")
def net() -> Inception:
    return Inception.load(TINY)


def test_features_of_images_of_any_size(net: Inception):
    torch.manual_seed(0)
    for size in (32, 64, 299, 320):
        images = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8)
        features = net(images)
        assert features.shape == (2, 256)
        assert net.logits(features).shape == (2, 1008)
    assert not features.requires_grad
    torch.testing.assert_close(net(images[1:]), features[1:], rtol=1e-4, atol=1e-6)


def test_resizing_is_tensorflow_ones():
    """Place i of the output is place i · scale of the input, which is the corner's, not the middle's: each output is
    written out from that."""
    torch.manual_seed(0)
    images = torch.rand(1, 1, 5, 4, dtype=torch.float64).expand(1, 3, 5, 4)
    found = resized(images, 7)
    for i in range(7):
        for j in range(7):
            y, x = i * 5 / 7, j * 4 / 7
            y0, x0 = int(y), int(x)
            y1, x1 = min(y0 + 1, 4), min(x0 + 1, 3)
            dy, dx = y - y0, x - x0
            top = images[0, 0, y0, x0] * (1 - dx) + images[0, 0, y0, x1] * dx
            bottom = images[0, 0, y1, x0] * (1 - dx) + images[0, 0, y1, x1] * dx
            assert float(found[0, 0, i, j]) == pytest.approx(float(top * (1 - dy) + bottom * dy), abs=1e-12)
    torch.testing.assert_close(resized(images, 299).mean(), images.mean(), rtol=0.2, atol=0)


def test_a_safetensors_copy_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    torch.manual_seed(3)
    whole = Inception()
    counts = {"Conv2d_1a_3x3.bn.num_batches_tracked": torch.tensor(5)}  # as some copies have
    save_file({**whole.state_dict(), **counts}, tmp_path / "inception.safetensors")
    again = Inception.load(file=tmp_path / "inception.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), again.state_dict().values(), strict=True))
    torch.save(whole.state_dict(), tmp_path / "inception.pth")
    with pytest.raises(ModelError, match="is not the published file of Inception's weights: its SHA-256 begins"):
        Inception.load(file=tmp_path / "inception.pth")
    digest = hashlib.sha256((tmp_path / "inception.pth").read_bytes()).hexdigest()
    monkeypatch.setattr(inception, "SHA256", digest)  # as if it were the published one
    images = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    assert torch.equal(Inception.load(file=tmp_path / "inception.pth")(images), whole(images))


def test_what_is_missing_or_another_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ModelError, match="there is no Inception network 'inception_v4'"):
        Inception.load("inception_v4")
    with pytest.raises(ModelError, match=r"there is no file .*none\.pth"):
        Inception.load(file=tmp_path / "none.pth")
    save_file({"a": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ModelError):
        Inception.load(file=tmp_path / "other.safetensors")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))

    def offline(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(
        ModelError, match=r"cannot be downloaded .* \(no network\); give the file of inception-2015-12-05\.$"
    ) as error:
        Inception.load()
    assert error.value.setting == "pretrained"
