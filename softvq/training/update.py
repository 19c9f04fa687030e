"""The end of a step, whatever is trained: learning rates, clipping, the spike guard; means over parts of a batch."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from softvq import distributed
from softvq.optim import OptimizerConfig
from softvq.training.state import TrainState


def set_rate(config: OptimizerConfig, optimizers: list[torch.optim.Optimizer], step: int, steps: int) -> float:
    """Set the learning rate of this step; gives it."""
    factor = config.factor_at(step, steps)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = factor * group.setdefault("peak", group["lr"])
    return factor * config.lr


def finish(
    state: TrainState,
    trained: nn.Module,
    optimizers: list[torch.optim.Optimizer],
    limit: float | None,
    skip_above: float | None,
    name: str,
) -> dict[str, Tensor]:
    """Clip the gradients at `limit`, let the optimizers step (unless the norm is a spike), and forget the gradients.
    The norm of what is called `name` is logged."""
    norm = nn.utils.clip_grad_norm_(trained.parameters(), float("inf") if limit is None else limit)
    norm = distributed.whole(norm).detach()
    spike = skip_above is not None and state.is_spike(name, float(norm), skip_above)
    for optimizer in optimizers:
        if not spike:
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    values = {f"optimizer/{name}_gradient_norm" if name == "discriminator" else "optimizer/gradient_norm": norm}
    return values | ({f"optimizer/{name}_skipped": torch.tensor(float(spike))} if skip_above else {})


def add(values: dict[str, Tensor], more: Mapping[str, Tensor], count: int) -> None:
    """Let `values` become the means over `count` parts."""
    for name, value in more.items():
        values[name] = values.get(name, 0) + value.detach() / count
