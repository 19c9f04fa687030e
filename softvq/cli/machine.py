"""--device and --precision: what was asked for, or what this machine does best."""

import torch

from softvq import distributed
from softvq.cli.main import Usage


def pick_device(asked: str) -> torch.device:
    """The device asked for, if this machine has it."""
    if asked == "auto":
        return distributed.best_device()
    try:
        device = torch.device(asked)
        if device.type not in ("cpu", "cuda", "mps"):
            raise RuntimeError("softvq runs on cpu, cuda and mps")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise Usage(f"--device {asked} cannot be used here ({reason}); try --device cpu") from None
    return device


def pick_precision(asked: str, device: torch.device, training: bool) -> str:
    """`auto`: bfloat16 for training where the machine gains from it; float32 for all else."""
    if asked != "auto":
        return asked
    return "bfloat16" if training and distributed.gains_from_bfloat16(device) else "float32"


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The autocast region of a precision."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")
