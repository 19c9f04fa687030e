"""LAMB is Algorithm 2 of You et al. 2020, written out here in numpy and float64."""

import copy
import io

import numpy as np
import pytest
import torch
from torch import nn

from softvq.optim import LAMB

SHAPES = ((3, 4), (5,), (2, 3, 2), (1,))


def gradients(steps: int, seed: int = 0) -> list[list[np.ndarray]]:
    """Of each step and parameter, of very different sizes: what a trust ratio is for."""
    rng = np.random.default_rng(seed)
    return [[10.0 ** (2 * i - 3) * rng.standard_normal(shape) for i, shape in enumerate(SHAPES)] for _ in range(steps)]


def weights(seed: int = 1) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [(i + 1) * rng.standard_normal(shape) for i, shape in enumerate(SHAPES)]


def algorithm_2(x: np.ndarray, found: list[np.ndarray], lr: list[float], b1, b2, eps, decay) -> np.ndarray:
    """One parameter, through all steps; φ is the identity, and a trust of 0 / 0 or of 0 is 1."""
    m, v = np.zeros_like(x), np.zeros_like(x)
    for t, (g, rate) in enumerate(zip(found, lr, strict=True), start=1):
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g**2
        m_hat = m / (1 - b1**t)
        v_hat = v / (1 - b2**t)
        r = m_hat / (np.sqrt(v_hat) + eps)
        u = r + decay * x
        length, wanted = np.sqrt((u**2).sum()), np.sqrt((x**2).sum())
        trust = wanted / length if length > 0 and wanted > 0 else 1.0
        x = x - rate * trust * u
    return x


def stepped(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], found: list[list[np.ndarray]]) -> None:
    for step in found:
        for parameter, gradient in zip(parameters, step, strict=True):
            parameter.grad = torch.from_numpy(gradient).to(parameter.dtype)
        optimizer.step()


def parameters_of(arrays: list[np.ndarray], dtype: torch.dtype = torch.float64) -> list[nn.Parameter]:
    return [nn.Parameter(torch.from_numpy(array.copy()).to(dtype)) for array in arrays]


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.5, 0.7)])
def test_every_parameter_takes_the_papers_update_with_a_trust_of_its_own(decay: float, betas: tuple[float, float]):
    found, start = gradients(7), weights()
    parameters = parameters_of(start)
    stepped(LAMB(parameters, lr=0.05, betas=betas, eps=1e-4, weight_decay=decay), parameters, found)
    for i, parameter in enumerate(parameters):
        expected = algorithm_2(start[i], [step[i] for step in found], [0.05] * 7, *betas, 1e-4, decay)
        np.testing.assert_allclose(parameter.detach().numpy(), expected, rtol=1e-10, atol=1e-12)


def test_what_is_not_said_is_the_papers():
    """β = (0.9, 0.999), ε = 1e-6 and no decay; gradients of about ε, so that it matters."""
    found = [[1e-6 * g for g in step] for step in gradients(3)]
    parameters = parameters_of(weights())
    stepped(LAMB(parameters, lr=0.01), parameters, found)
    for i, parameter in enumerate(parameters):
        expected = algorithm_2(weights()[i], [step[i] for step in found], [0.01] * 3, 0.9, 0.999, 1e-6, 0.0)
        np.testing.assert_allclose(parameter.detach().numpy(), expected, rtol=1e-10, atol=1e-12)


def test_a_step_without_decay_is_as_long_as_the_rate_times_the_weights():
    start, found = weights(), gradients(1)
    parameters = parameters_of(start)
    stepped(LAMB(parameters, lr=0.02), parameters, found)
    for before, after in zip(start, parameters, strict=True):
        moved = np.linalg.norm(after.detach().numpy() - before)
        assert moved == pytest.approx(0.02 * np.linalg.norm(before), rel=1e-9)


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_weights_of_zero_take_adams_own_step_and_leave_zero(decay: float):
    start = [np.zeros(shape) for shape in SHAPES]
    parameters, found = parameters_of(start), gradients(4)
    stepped(LAMB(parameters, lr=0.05, weight_decay=decay), parameters, found[:1])
    for parameter, gradient in zip(parameters, found[0], strict=True):
        adams = -0.05 * gradient / (np.abs(gradient) + 1e-6)  # of the first step
        np.testing.assert_allclose(parameter.detach().numpy(), adams, rtol=1e-9)
    parameters = parameters_of(start)
    stepped(LAMB(parameters, lr=0.05, weight_decay=decay), parameters, found)
    for i, parameter in enumerate(parameters):
        expected = algorithm_2(start[i], [step[i] for step in found], [0.05] * 4, 0.9, 0.999, 1e-6, decay)
        np.testing.assert_allclose(parameter.detach().numpy(), expected, rtol=1e-10, atol=1e-12)


def test_without_gradient_and_decay_nothing_moves_and_nothing_is_nan():
    start = weights()
    parameters = parameters_of(start)
    stepped(LAMB(parameters, lr=0.05), parameters, [[np.zeros(shape) for shape in SHAPES]] * 3)
    for before, after in zip(start, parameters, strict=True):
        assert np.array_equal(after.detach().numpy(), before)


def test_what_has_no_gradient_is_left_alone_and_starts_its_own_count():
    """Bias correction counts the steps of a parameter, not of the optimizer."""
    start, found = weights(), gradients(3)
    parameters = parameters_of(start[:2])
    optimizer = LAMB(parameters, lr=0.05)
    parameters[0].grad = torch.from_numpy(found[0][0])
    optimizer.step()
    assert np.array_equal(parameters[1].detach().numpy(), start[1])
    stepped(optimizer, parameters, [step[:2] for step in found[1:]])
    expected = algorithm_2(start[1], [step[1] for step in found[1:]], [0.05] * 2, 0.9, 0.999, 1e-6, 0.0)
    np.testing.assert_allclose(parameters[1].detach().numpy(), expected, rtol=1e-10)


def test_groups_have_their_own_settings_and_a_rate_that_can_change():
    start, found = weights(), gradients(5)
    parameters = parameters_of(start)
    optimizer = LAMB(parameters[:2], lr=0.1, weight_decay=0.3)
    optimizer.add_param_group({"params": parameters[2:], "betas": (0.8, 0.9), "weight_decay": 0.0})
    rates = [0.1, 0.08, 0.05, 0.02, 0.0]
    for rate, step in zip(rates, found, strict=True):
        optimizer.param_groups[0]["lr"] = rate
        stepped(optimizer, parameters, [step])
    for i, parameter in enumerate(parameters):
        more = (rates, 0.9, 0.999, 1e-6, 0.3) if i < 2 else ([0.1] * 5, 0.8, 0.9, 1e-6, 0.0)
        expected = algorithm_2(start[i], [step[i] for step in found], *more)
        np.testing.assert_allclose(parameter.detach().numpy(), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_saved_state_goes_on_bitwise(dtype: torch.dtype):
    found = gradients(6)
    whole = parameters_of(weights(), dtype)
    optimizer = LAMB(whole, lr=0.03, weight_decay=0.05)
    stepped(optimizer, whole, found[:3])
    file = io.BytesIO()
    torch.save({"optimizer": optimizer.state_dict(), "weights": [p.detach() for p in whole]}, file)
    stepped(optimizer, whole, found[3:])
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    again = [nn.Parameter(tensor) for tensor in saved["weights"]]
    fresh = copy.deepcopy(again)
    resumed = LAMB(again, lr=1.0)  # the saved settings win
    resumed.load_state_dict(saved["optimizer"])
    stepped(resumed, again, found[3:])
    for one, other in zip(whole, again, strict=True):
        assert torch.equal(one, other)
    stepped(LAMB(fresh, lr=0.03, weight_decay=0.05), fresh, found[3:])
    # The state matters, but not to a single number, whose direction is its sign.
    assert not any(torch.equal(one, other) for one, other in zip(whole[:3], fresh[:3], strict=True))
