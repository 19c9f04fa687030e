"""The Inception network of December 2015 that FID and the Inception Score are defined by, in its PyTorch port.

Other ports and torchvision's own weights give other numbers. The file is a pickle of tensors: it is read only if its
SHA-256 is the published one, or if it is given as safetensors.
"""

import hashlib
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from softvq import files
from softvq.errors import ModelError
from softvq.saving import build

NAME = "inception-2015-12-05"
TINY = "tiny_inception"  # a stand-in with seeded random weights, an eighth as wide: for tests
URL = "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth"
SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
SIDE = 299


class _Norm(nn.Module):
    """A batch norm that uses its running statistics only, as after training."""

    def __init__(self, channels: int):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=0.001)


class _Conv(nn.Module):
    """A convolution without bias, batch norm, ReLU."""

    def __init__(self, before: int, after: int, kernel: int | tuple[int, int], stride: int = 1, padding=0):
        super().__init__()
        self.conv = nn.Conv2d(before, after, kernel, stride, padding, bias=False)
        self.bn = _Norm(after)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


def _average(x: Tensor) -> Tensor:
    """Return 3 × 3 averages of the values inside the image, as TensorFlow takes them."""
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


class _A(nn.Module):
    def __init__(self, before: int, pool: int, share: float):
        super().__init__()
        w48, w64, w96, pool = (int(n * share) for n in (48, 64, 96, pool))
        self.branch1x1 = _Conv(before, w64, 1)
        self.branch5x5_1 = _Conv(before, w48, 1)
        self.branch5x5_2 = _Conv(w48, w64, 5, padding=2)
        self.branch3x3dbl_1 = _Conv(before, w64, 1)
        self.branch3x3dbl_2 = _Conv(w64, w96, 3, padding=1)
        self.branch3x3dbl_3 = _Conv(w96, w96, 3, padding=1)
        self.branch_pool = _Conv(before, pool, 1)

    def forward(self, x: Tensor) -> Tensor:
        five = self.branch5x5_2(self.branch5x5_1(x))
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch1x1(x), five, double, self.branch_pool(_average(x))], 1)


class _B(nn.Module):
    def __init__(self, before: int, share: float):
        super().__init__()
        w64, w96, w384 = (int(n * share) for n in (64, 96, 384))
        self.branch3x3 = _Conv(before, w384, 3, stride=2)
        self.branch3x3dbl_1 = _Conv(before, w64, 1)
        self.branch3x3dbl_2 = _Conv(w64, w96, 3, padding=1)
        self.branch3x3dbl_3 = _Conv(w96, w96, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), double, F.max_pool2d(x, 3, stride=2)], 1)


class _C(nn.Module):
    def __init__(self, before: int, inner: int, share: float):
        super().__init__()
        inner, out = int(inner * share), int(192 * share)
        row, column = {"kernel": (1, 7), "padding": (0, 3)}, {"kernel": (7, 1), "padding": (3, 0)}
        self.branch1x1 = _Conv(before, out, 1)
        self.branch7x7_1 = _Conv(before, inner, 1)
        self.branch7x7_2 = _Conv(inner, inner, **row)
        self.branch7x7_3 = _Conv(inner, out, **column)
        self.branch7x7dbl_1 = _Conv(before, inner, 1)
        self.branch7x7dbl_2 = _Conv(inner, inner, **column)
        self.branch7x7dbl_3 = _Conv(inner, inner, **row)
        self.branch7x7dbl_4 = _Conv(inner, inner, **column)
        self.branch7x7dbl_5 = _Conv(inner, out, **row)
        self.branch_pool = _Conv(before, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        seven = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
        return torch.cat([self.branch1x1(x), seven, double, self.branch_pool(_average(x))], 1)


class _D(nn.Module):
    def __init__(self, before: int, share: float):
        super().__init__()
        w192, w320 = int(192 * share), int(320 * share)
        self.branch3x3_1 = _Conv(before, w192, 1)
        self.branch3x3_2 = _Conv(w192, w320, 3, stride=2)
        self.branch7x7x3_1 = _Conv(before, w192, 1)
        self.branch7x7x3_2 = _Conv(w192, w192, (1, 7), padding=(0, 3))
        self.branch7x7x3_3 = _Conv(w192, w192, (7, 1), padding=(3, 0))
        self.branch7x7x3_4 = _Conv(w192, w192, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        seven = self.branch7x7x3_2(self.branch7x7x3_1(x))
        seven = self.branch7x7x3_4(self.branch7x7x3_3(seven))
        return torch.cat([self.branch3x3_2(self.branch3x3_1(x)), seven, F.max_pool2d(x, 3, stride=2)], 1)


class _E(nn.Module):
    """A block of the last stage of the network.

    `largest`: the graph's last block pools by maximum, where the one before averages.
    """

    def __init__(self, before: int, largest: bool, share: float):
        super().__init__()
        w192, w320, w384, w448 = (int(n * share) for n in (192, 320, 384, 448))
        self.largest = largest
        self.branch1x1 = _Conv(before, w320, 1)
        self.branch3x3_1 = _Conv(before, w384, 1)
        self.branch3x3_2a = _Conv(w384, w384, (1, 3), padding=(0, 1))
        self.branch3x3_2b = _Conv(w384, w384, (3, 1), padding=(1, 0))
        self.branch3x3dbl_1 = _Conv(before, w448, 1)
        self.branch3x3dbl_2 = _Conv(w448, w384, 3, padding=1)
        self.branch3x3dbl_3a = _Conv(w384, w384, (1, 3), padding=(0, 1))
        self.branch3x3dbl_3b = _Conv(w384, w384, (3, 1), padding=(1, 0))
        self.branch_pool = _Conv(before, w192, 1)

    def forward(self, x: Tensor) -> Tensor:
        three = self.branch3x3_1(x)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        pooled = F.max_pool2d(x, 3, stride=1, padding=1) if self.largest else _average(x)
        parts = [self.branch1x1(x), self.branch3x3_2a(three), self.branch3x3_2b(three)]
        parts += [self.branch3x3dbl_3a(double), self.branch3x3dbl_3b(double), self.branch_pool(pooled)]
        return torch.cat(parts, 1)


class Inception(nn.Module):
    """The network: 8-bit RGB images of any size → 2,048 features each (and 1,008 logits).

    `share` is the share of its width that it has.
    """

    def __init__(self, share: float = 1.0):
        super().__init__()
        w = {n: int(n * share) for n in (32, 64, 80, 192, 256, 288, 768, 1280, 2048)}
        self.Conv2d_1a_3x3 = _Conv(3, w[32], 3, stride=2)
        self.Conv2d_2a_3x3 = _Conv(w[32], w[32], 3)
        self.Conv2d_2b_3x3 = _Conv(w[32], w[64], 3, padding=1)
        self.Conv2d_3b_1x1 = _Conv(w[64], w[80], 1)
        self.Conv2d_4a_3x3 = _Conv(w[80], w[192], 3)
        self.Mixed_5b = _A(w[192], 32, share)
        self.Mixed_5c = _A(w[256], 64, share)
        self.Mixed_5d = _A(w[288], 64, share)
        self.Mixed_6a = _B(w[288], share)
        self.Mixed_6b = _C(w[768], 128, share)
        self.Mixed_6c = _C(w[768], 160, share)
        self.Mixed_6d = _C(w[768], 160, share)
        self.Mixed_6e = _C(w[768], 192, share)
        self.Mixed_7a = _D(w[768], share)
        self.Mixed_7b = _E(w[1280], False, share)
        self.Mixed_7c = _E(w[2048], True, share)
        self.fc = nn.Linear(w[2048], 1008)
        self.width = w[2048]
        self.requires_grad_(False).eval()

    @classmethod
    def load(cls, name: str = NAME, file: Path | None = None) -> "Inception":
        """Return the network with the published weights, or the stand-in of that name.

        The weights come from `file` (the .pth, or safetensors with its names), or are downloaded once.
        """
        if name == TINY:
            return _random()
        if name != NAME:
            raise ModelError(f"there is no Inception network {name!r}; there are {NAME} and {TINY}.")
        file = _downloaded() if file is None else file
        tensors = files.read_tensors(file) if file.suffix == ".safetensors" else _unpickled(file)
        tensors = {k: v for k, v in tensors.items() if not k.endswith("num_batches_tracked")}
        return build(cls, 5, file, tensors)

    def forward(self, images: UInt8[Tensor, "B 3 H W"]) -> Float[Tensor, "B F"]:
        """Return the features of the last pooling layer, of images resized as TensorFlow 1 did."""
        return self.activations(resized(images.to(self.fc.weight.dtype)))[0]

    def activations(self, images: Float[Tensor, "B 3 S S"]) -> tuple[Float[Tensor, "B F"], Float[Tensor, "B P"]]:
        """Return the features of the last pooling layer, and those that sFID is measured in (Nash et al. 2021).

        The latter are 7 channels at each of 17 × 17 places, of the layer that the graph calls `mixed_6/conv`, the
        channel running fastest as in TensorFlow: in that order ADM's files hold their statistics. Images are in [0,
        255] at 299 px.
        """
        x = (images - 128) / 128
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = F.max_pool2d(x, 3, stride=2)
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x))
        x = F.max_pool2d(x, 3, stride=2)
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x)))
        x = self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))
        spatial = self.Mixed_6d.branch1x1(x)[:, :7].permute(0, 2, 3, 1).flatten(1)
        x = self.Mixed_6e(self.Mixed_6d(x))
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))
        return x.mean((2, 3)), spatial

    def logits(self, features: Float[Tensor, "B F"]) -> Float[Tensor, "B 1008"]:
        """Return the logits of features, without the bias: the Inception Score is computed from them."""
        return features @ self.fc.weight.T


def resized(images: Float[Tensor, "B 3 H W"], side: int = SIDE) -> Float[Tensor, "B 3 side side"]:
    """Return images resized bilinearly as TensorFlow 1 did.

    Output place i is input place i · (input side / side).
    """
    for dim in (2, 3):
        length = images.shape[dim]
        places = torch.arange(side, dtype=images.dtype, device=images.device) * (length / side)
        low = places.long()
        high = (low + 1).clamp_max(length - 1)
        part = (places - low).view(-1, 1) if dim == 2 else places - low
        below, above = images.index_select(dim, low), images.index_select(dim, high)
        images = below + (above - below) * part
    return images


def _random() -> Inception:
    """Return the stand-in with seeded random weights.

    It has He's initialisation: with PyTorch's own, an image's signal is down to 1e-9 behind 20 layers.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        net = Inception(1 / 8)
        for module in net.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    return net


def _downloaded() -> Path:
    path = Path(torch.hub.get_dir()) / "checkpoints" / URL.rsplit("/", 1)[1]
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(URL, str(path), hash_prefix=SHA256)
        except (OSError, RuntimeError) as error:
            raise ModelError(
                f"Inception's weights cannot be downloaded from {URL} ({error}); give the file of {NAME}.",
                setting="pretrained",
            ) from error
    return path


def _unpickled(file: Path) -> dict[str, Tensor]:
    if not file.is_file():
        raise ModelError(f"there is no file {file}.")
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    if digest != SHA256:
        raise ModelError(
            f"{file} is not the published file of Inception's weights: its SHA-256 begins {digest[:16]}, not "
            f"{SHA256[:16]}."
        )
    return torch.load(file, weights_only=True, map_location="cpu")
