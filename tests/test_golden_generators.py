"""The published SiT's and DiT's numbers, reproduced from checkpoints in their own format (see golden/README.md)."""

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from softvq.generators.base import Generator
from softvq.generators.dit import DiT
from softvq.generators.sit import SiT, SiTConfig
from softvq.generators.transformer import TransformerConfig
from softvq.transports import samplers
from softvq.transports.guidance import Guidance
from tests.golden.fill import filled_state_dict

CASES = Path(__file__).parent / "golden"
LABELS = torch.arange(3)


@dataclass(frozen=True)
class Golden:
    folder: Path
    expected: dict[str, Tensor]


def released(case: str, folder: Path) -> Golden:
    """The case as a folder in the released format."""
    folder.mkdir()
    shutil.copy(CASES / case / "config.json", folder)
    expected = load_file(CASES / case / "expected.safetensors")
    tensors = filled_state_dict(str(CASES / case / "manifest.json")) | {"pos_embed": expected["pos_embed"]}
    save_file(tensors, folder / "model.safetensors")
    return Golden(folder, expected)


@pytest.fixture(scope="module")
def sit(tmp_path_factory) -> Golden:
    return released("sit-tiny", tmp_path_factory.mktemp("golden") / "sit-tiny_softvq-l-32")


@pytest.fixture(scope="module")
def dit(tmp_path_factory) -> Golden:
    return released("dit-tiny", tmp_path_factory.mktemp("golden") / "dit-tiny_softvq-l-32")


def on(golden: Golden, **change: str) -> SiT | DiT:
    """The released network, with another path or other betas: of those the weights know nothing."""
    model = Generator.from_pretrained(golden.folder)
    other = replace(model.config, **change).build().eval()
    other.load_state_dict(model.state_dict())
    return other


def assert_near(actual: Tensor, expected: Tensor, absolute: float, relative: float = 0.0) -> None:
    torch.testing.assert_close(actual.double(), expected.double(), atol=absolute, rtol=relative)


@pytest.mark.parametrize("case", ["sit", "dit"])
def test_the_configuration_and_every_tensor_are_understood(case, request):
    golden = request.getfixturevalue(case)
    model = Generator.from_pretrained(golden.folder)
    assert isinstance(model, SiT if case == "sit" else DiT)
    assert model.config.network == TransformerConfig(16, 8, 10, 128, 4, 4)
    assert model.config.dropout == 0.1
    assert model.config.path == "linear" if case == "sit" else model.config.betas == "cosine"
    assert not model.training
    assert model.about["source"]
    assert model.about["tokenizer"] == {"name": "SoftVQVAE/softvq-l-32"}
    stored = load_file(golden.folder / "model.safetensors")
    ours = model.state_dict()
    assert {f"network.{name}" for name in stored} == ours.keys()
    assert all(torch.equal(ours[f"network.{name}"], tensor) for name, tensor in stored.items())


@pytest.mark.parametrize("case", ["sit", "dit"])
def test_our_own_positions_are_the_published_ones(case, request):
    golden = request.getfixturevalue(case)
    ours = SiTConfig(TransformerConfig(16, 8, 10, 128, 4, 4)).build().network.pos_embed
    assert_near(ours, golden.expected["pos_embed"], 1e-6)


# ---- SiT


@torch.no_grad()
def test_sits_velocity(sit: Golden):
    e = sit.expected
    assert e["y"].max() == 10  # the null class is among them
    assert_near(Generator.from_pretrained(sit.folder)(e["x"], e["t"], e["y"]), e["velocity"], 1e-4)


@pytest.mark.parametrize("path", ["linear", "cosine"])
@torch.no_grad()
def test_sits_loss(sit: Golden, path: str):
    e, model = sit.expected, on(sit, path=path)
    latents, t, noise = (e[f"{path}.loss_{name}"] for name in ("latent", "t", "noise"))
    assert_near(model.loss_at(latents, LABELS, t, noise), e[f"{path}.loss"], 0, 1e-3)


@pytest.mark.parametrize("path", ["linear", "cosine"])
@pytest.mark.parametrize("scale", [1, 2])
@torch.no_grad()
def test_sits_samples(sit: Golden, path: str, scale: int):
    e, x = sit.expected, sit.expected["sample.noise"].double()
    field = on(sit, path=path).field(e["sample.y"], Guidance(scale, (0.0, 0.7)))
    found = {
        "euler8": samplers.euler(field, x, 8),
        "heun8": samplers.heun(field, x, 8),
        "sde8": samplers.euler_maruyama(field, x, 8, path, lambda number: e["sde8.noise"][number]),
    }
    for name, samples in found.items():
        assert_near(samples, e[f"{path}.cfg{scale}.{name}"], 1e-4)


# ---- DiT


@torch.no_grad()
def test_dits_noise_and_variance(dit: Golden):
    e = dit.expected
    assert_near(Generator.from_pretrained(dit.folder)(e["x"], e["t"], e["y"]), e["output"], 1e-4)


@pytest.mark.parametrize("betas", ["linear", "cosine"])
def test_betas_and_respaced_steps(dit: Golden, betas: str):
    chain = on(dit, betas=betas).diffusion
    assert_near(chain.betas, dit.expected[f"{betas}.betas"], 1e-14)
    assert torch.equal(chain.respaced(10).timesteps, dit.expected[f"{betas}.respaced_timesteps10"])


@pytest.mark.parametrize("betas", ["linear", "cosine"])
@torch.no_grad()
def test_dits_losses(dit: Golden, betas: str):
    e, model = dit.expected, on(dit, betas=betas)
    latents, step, noise = (e[f"{betas}.loss_{name}"] for name in ("latent", "t", "noise"))
    found = model.loss_at(latents, LABELS, step, noise)
    for ours, theirs in (("loss", "loss"), ("mse", "loss_mse"), ("bound", "loss_vb")):
        assert_near(found[ours], e[f"{betas}.{theirs}"], 0, 1e-3)


@pytest.mark.parametrize("betas", ["linear", "cosine"])
@pytest.mark.parametrize("scale", [1, 2])
@torch.no_grad()
def test_dits_samples(dit: Golden, betas: str, scale: int):
    e, model = dit.expected, on(dit, betas=betas)
    field, x = model.field(e["sample.y"], Guidance(scale)), dit.expected["sample.noise"]
    chain = model.diffusion.respaced(10)
    found = {
        "ddim10": samplers.ddim(field, x, chain),
        "ddpm10": samplers.ddpm(field, x, chain, lambda number: e["ddpm10.noise"][number]),
    }
    for name, samples in found.items():
        expected = e[f"{betas}.cfg{scale}.{name}"]
        assert_near(samples, expected, 1e-5 * expected.abs().max().item())


# ---- What the folder says


def test_an_unset_path_is_the_papers_and_says_so(sit: Golden, tmp_path: Path):
    (tmp_path / "model.safetensors").symlink_to(sit.folder / "model.safetensors")
    config = json.loads((sit.folder / "config.json").read_text())
    for path in ({"path_type": "edm"}, {}):
        plain = {key: value for key, value in config.items() if key != "path_type"} | path
        (tmp_path / "config.json").write_text(json.dumps(plain))
        model = Generator.from_pretrained(tmp_path)
        assert model.config.path == "cosine"
        assert "edm" in model.about["path"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert "path" not in Generator.from_pretrained(tmp_path).about


@pytest.mark.parametrize("case", ["sit", "dit"])
@torch.no_grad()
def test_saved_in_our_format_it_is_the_same(case, request, tmp_path: Path):
    golden = request.getfixturevalue(case)
    model = Generator.from_pretrained(golden.folder)
    model.save_pretrained(tmp_path / "ours")
    again = Generator.from_pretrained(tmp_path / "ours")
    assert again.config == model.config
    assert again.about == model.about
    assert again.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in again.state_dict().items())
