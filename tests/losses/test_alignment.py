"""Eq. 5 and 6 against a straight-line reading of them."""

import math

import pytest
import torch

from softvq.losses.alignment import Projector, alignment, latent_of_patch


def reference(z: torch.Tensor, y: torch.Tensor, mlp) -> float:
    """−1/N Σ_n sim(y[n], MLP(z_r[n])) with z_r written out: each latent N/L times in a row."""
    B, L, _ = z.shape
    N = y.shape[1]
    total = 0.0
    for b in range(B):
        replicated = [z[b, i] for i in range(L) for _ in range(N // L)]
        for n in range(N):
            v, w = mlp(replicated[n]).tolist(), y[b, n].tolist()
            dot = math.fsum(a * b for a, b in zip(v, w, strict=True))
            total += dot / math.sqrt(math.fsum(a * a for a in v) * math.fsum(b * b for b in w))
    return -total / (B * N)


@pytest.fixture
def case() -> tuple[Projector, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return Projector(5, 8, 6), torch.randn(2, 4, 5), torch.randn(2, 12, 6)


def test_the_printed_equation_with_its_sign(case):
    projector, z, y = case
    expected = reference(z.double(), y.double(), projector.double().layers)
    projector.float()
    assert alignment(projector(z), y).item() == pytest.approx(expected, abs=1e-6)


def test_shuffled_and_tiled_replications_are_seen(case):
    projector, z, y = case
    expected = alignment(projector(z), y)
    tiled = projector(z).repeat(1, 3, 1)  # latents 0 1 2 3 0 1 2 3 …, not 0 0 0 1 1 1 …
    assert not torch.isclose(alignment(tiled, y), expected, rtol=1e-3)
    assert not torch.isclose(alignment(projector(z[:, [1, 0, 2, 3]]), y), expected, rtol=1e-3)
    assert not torch.isclose(alignment(projector(z), y[:, torch.arange(12).roll(1)]), expected, rtol=1e-3)


def test_bounds_and_scale():
    y = torch.randn(2, 6, 4)
    assert float(alignment(y, y)) == pytest.approx(-1)
    assert float(alignment(-3 * y, y)) == pytest.approx(1)


@pytest.mark.parametrize(("latents", "patches"), [(4, 12), (64, 256), (32, 256), (3, 8), (64, 49), (5, 5)])
def test_patch_n_takes_latent_floor_of_n_l_over_n(latents: int, patches: int):
    chosen = latent_of_patch(latents, patches).tolist()
    assert chosen == [math.floor(n * latents / patches) for n in range(patches)]
    if patches % latents == 0:
        assert chosen == [i for i in range(latents) for _ in range(patches // latents)]  # Eq. 5


def test_the_projector_is_three_layers_with_silu_between(case):
    projector, z, _ = case
    a, b, c = (projector.layers[i] for i in (0, 2, 4))
    silu = torch.nn.functional.silu
    torch.testing.assert_close(projector(z), c(silu(b(silu(a(z))))))
    assert [tuple(layer.weight.shape) for layer in (a, b, c)] == [(8, 5), (8, 8), (6, 8)]


def test_gradient_reaches_latents_and_projector_not_the_targets(case):
    projector, z, y = case
    z.requires_grad_()
    y.requires_grad_()
    alignment(projector(z), y.detach()).backward()
    assert z.grad.abs().sum() > 0
    assert all(p.grad is not None for p in projector.parameters())
    assert y.grad is None


def test_half_precision_inputs_are_compared_in_float32():
    y = torch.randn(1, 8, 64)
    result = alignment(y.bfloat16(), y.bfloat16())
    assert result.dtype == torch.float32
    assert float(result) == pytest.approx(-1, abs=1e-6)
