"""The device and the precision of networks: chosen once, and passed on."""

from typing import Literal

import torch

from softvq.errors import ConfigError

Precision = Literal["float32", "bfloat16"]


def best_device() -> torch.device:
    """Return CUDA where there is one, then MPS, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def pick_device(asked: str | torch.device = "auto") -> torch.device:
    """Return the requested device (`auto`: the best there is); raise `ConfigError` when it cannot be used here."""
    if asked == "auto":
        return best_device()
    try:
        device = torch.device(asked)
        if device.type not in ("cpu", "cuda", "mps"):
            raise RuntimeError("softvq runs on cpu, cuda and mps")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"the device {str(asked)!r} cannot be used here ({reason}); try 'cpu'.", setting="device"
        ) from None
    return device


def gains_from_bfloat16(device: torch.device) -> bool:
    """Return True when bf16 autocast is faster than float32.

    It is on CUDA since Ampere, and on CPUs with bf16 products in AMX or AVX-512 (measured: 2–3× faster there, and 3×
    slower on CPUs without).
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        probes = (getattr(torch.cpu, f"_is_{name}_supported", None) for name in ("amx_tile", "avx512_bf16"))
        return any(probe is not None and probe() for probe in probes)
    return False


def pick_precision(asked: str, device: torch.device, *, training: bool) -> Precision:
    """Return the requested precision; raise `ConfigError` when there is none of that name.

    `auto` is bfloat16 for training where the machine gains from it, and float32 for all else.
    """
    if asked not in ("auto", "float32", "bfloat16"):
        raise ConfigError(f"precision must be auto, float32 or bfloat16, not {asked!r}.", setting="precision")
    if asked != "auto":
        return asked
    return "bfloat16" if training and gains_from_bfloat16(device) else "float32"


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Return the autocast region of a precision."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")
