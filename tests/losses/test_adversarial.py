"""The adversarial terms against sums written out in float64."""

import math

import pytest
import torch

from softvq.losses.adversarial import LeCAM, adaptive_weight, consistency, discriminator_loss, generator_loss

EXTREMES = torch.tensor([[-1e4, 1e4], [1.0, -1.0]])


def mean(values) -> float:
    values = list(values)
    return math.fsum(values) / len(values)


def flat(logits: torch.Tensor) -> list[float]:
    return logits.double().flatten().tolist()


def relu(x: float) -> float:
    return x if x > 0 else 0.0


def softplus(x: float) -> float:
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


@pytest.fixture
def logits() -> tuple[torch.Tensor, torch.Tensor]:
    """Real and fake, of both signs and beyond both margins."""
    torch.manual_seed(0)
    return torch.randn(4, 7) * 2 + 0.5, torch.randn(4, 7) * 1.5 - 0.3


def test_hinge_of_both_players(logits):
    real, fake = logits
    expected = 0.5 * mean(relu(1 - x) for x in flat(real)) + 0.5 * mean(relu(1 + x) for x in flat(fake))
    assert discriminator_loss(real, fake, "hinge").item() == pytest.approx(expected, rel=1e-6)
    assert generator_loss(fake, "hinge").item() == pytest.approx(-mean(flat(fake)), rel=1e-6)


def test_non_saturating_of_both_players(logits):
    real, fake = logits
    expected = 0.5 * mean(softplus(-x) for x in flat(real)) + 0.5 * mean(softplus(x) for x in flat(fake))
    assert discriminator_loss(real, fake, "non_saturating").item() == pytest.approx(expected, rel=1e-6)
    expected = mean(softplus(-x) for x in flat(fake))
    assert generator_loss(fake, "non_saturating").item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("loss", ["hinge", "non_saturating"])
def test_real_wants_up_fake_wants_down_and_the_generator_the_opposite(logits, loss):
    real, fake = (x.clamp(-0.9, 0.9).requires_grad_() for x in logits)  # inside both margins
    up, down = torch.autograd.grad(discriminator_loss(real, fake, loss), (real, fake))
    (wanted,) = torch.autograd.grad(generator_loss(fake, loss), fake)
    assert (up < 0).all()
    assert (down > 0).all()
    assert (wanted < 0).all()


def test_beyond_the_margin_the_hinge_has_no_gradient():
    real, fake = torch.tensor([[1.5, 0.5]], requires_grad=True), torch.tensor([[-1.5, -0.5]], requires_grad=True)
    discriminator_loss(real, fake, "hinge").backward()
    assert real.grad.tolist() == [[0, -0.25]]
    assert fake.grad.tolist() == [[0, 0.25]]


@pytest.mark.parametrize("loss", ["hinge", "non_saturating"])
def test_large_logits_and_half_precision_stay_finite_and_in_float32(loss):
    for value in (discriminator_loss(EXTREMES, EXTREMES, loss), generator_loss(EXTREMES.bfloat16(), loss)):
        assert value.isfinite()
        assert value.dtype == torch.float32
    half = torch.linspace(-2, 2, 4095).bfloat16()[None]
    pair = half, half.flip(1) * 0.7
    assert discriminator_loss(*pair, loss) == discriminator_loss(*(x.float() for x in pair), loss)
    assert generator_loss(half, loss) == generator_loss(half.float(), loss)


def test_consistency_is_the_mean_squared_move(logits):
    weak, strong = logits
    expected = mean((a - b) ** 2 for a, b in zip(flat(weak), flat(strong), strict=True))
    assert consistency(weak, strong).item() == pytest.approx(expected, rel=1e-6)
    assert consistency(weak.bfloat16(), strong.bfloat16()).dtype == torch.float32
    assert consistency(weak, weak) == 0


def test_lecams_averages_start_at_0_and_decay_by_0999(logits):
    lecam, real_average, fake_average = LeCAM(), 0.0, 0.0
    for step in range(6):
        real, fake = (x * (1 + step) + step for x in logits)
        lecam.update(real, fake)
        real_average = 0.999 * real_average + 0.001 * mean(flat(real))
        fake_average = 0.999 * fake_average + 0.001 * mean(flat(fake))
        assert lecam.real.item() == pytest.approx(real_average, rel=1e-5)
        assert lecam.fake.item() == pytest.approx(fake_average, rel=1e-5)


def test_lecam_holds_each_kind_near_the_others_average(logits):
    real, fake = logits
    lecam = LeCAM()
    lecam.real.fill_(0.7)
    lecam.fake.fill_(-0.4)
    expected = mean(relu(x + 0.4) ** 2 for x in flat(real)) + mean(relu(0.7 - x) ** 2 for x in flat(fake))
    assert lecam(real, fake).item() == pytest.approx(expected, rel=1e-6)
    assert (lecam.real.item(), lecam.fake.item()) == pytest.approx((0.7, -0.4))  # looking does not move them


def test_lecams_gradient_pulls_the_kinds_together(logits):
    real, fake = (x.requires_grad_() for x in logits)
    lecam = LeCAM()
    lecam.update(real, fake)
    assert not lecam.real.requires_grad
    pulled = torch.autograd.grad(lecam(real, fake), (real, fake))
    assert (pulled[0] >= 0).all()  # descent lowers the real ones
    assert (pulled[1] <= 0).all()  # and raises the fake ones
    assert all(x.abs().sum() > 0 for x in pulled)


def test_lecams_averages_are_saved_and_nothing_of_it_is_trained(logits):
    lecam = LeCAM()
    lecam.update(*logits)
    assert sorted(lecam.state_dict()) == ["fake", "real"]
    assert not list(lecam.parameters())
    other = LeCAM()
    other.load_state_dict(lecam.state_dict())
    assert torch.equal(other(*logits), lecam(*logits))


def test_the_adaptive_weight_of_a_linear_model():
    """y = W x; reconstruction a · y and adversarial b · y have the gradients a xᵀ and b xᵀ, of norms |a||x|, |b||x|."""
    torch.manual_seed(0)
    last = torch.nn.Linear(3, 2, bias=False)
    x, a, b = torch.randn(3), torch.randn(2), torch.randn(2)
    y = last(x)
    found = adaptive_weight((a * y).sum(), (b * y).sum(), last.weight)
    norm = {name: math.sqrt(math.fsum(v * v for v in flat(t))) for name, t in (("x", x), ("a", a), ("b", b))}
    expected = norm["a"] * norm["x"] / (norm["b"] * norm["x"] + 1e-4)
    assert found.item() == pytest.approx(expected, rel=1e-5)
    assert not found.requires_grad
    assert last.weight.grad is None
    ((a * y).sum() + found * (b * y).sum()).backward()  # the graph is still there
    torch.testing.assert_close(last.weight.grad, torch.outer(a + found * b, x))


@pytest.mark.parametrize(("adversarial", "expected"), [(0.0, 1e4), (1e-4, 5e3), (1e-6, 1 / 1.01e-4), (0.5, 1 / 0.5001)])
def test_the_adaptive_weight_has_a_floor_below_and_a_bound(adversarial: float, expected: float):
    weight = torch.ones(1, requires_grad=True)
    found = adaptive_weight((1.0 * weight).sum(), (adversarial * weight).sum(), weight)
    assert found.item() == pytest.approx(expected, rel=1e-5)
    assert adaptive_weight((1e3 * weight).sum(), (0.0 * weight).sum(), weight) == 1e4
