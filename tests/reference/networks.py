"""timm's networks with random weights of a size that makes every part of them count."""

import timm
import torch
from torch import nn


@torch.no_grad()
def random_timm(name: str, **options) -> nn.Module:
    """Seeded by nothing: call `torch.manual_seed` first."""
    model = timm.create_model(name, pretrained=False, **options).eval()
    for key, parameter in model.named_parameters():
        noise = torch.randn_like(parameter)
        is_scale = parameter.ndim == 1 and key.endswith(("weight", "gamma"))
        fan_in = parameter[0].numel() if parameter.ndim > 1 else 100
        parameter.copy_(1 + 0.1 * noise if is_scale else noise / fan_in**0.5)
    return model
