"""Rank, world size and reductions. Everything here works unwrapped in a single process."""

import torch
import torch.distributed as dist
import torch.distributed.nn.functional as dist_nn
from torch import Tensor


def active() -> bool:
    """Whether a process group is up."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """This process's number, 0 when alone."""
    return dist.get_rank() if active() else 0


def world_size() -> int:
    """How many processes take part, 1 when alone."""
    return dist.get_world_size() if active() else 1


def mean(x: Tensor) -> Tensor:
    """Mean of a tensor over all ranks, with gradients that reach every rank's tensor."""
    if world_size() == 1:
        return x
    return dist_nn.all_reduce(x.contiguous()) / world_size()


def maximum(x: Tensor) -> Tensor:
    """Largest value over all ranks, without gradients."""
    if world_size() == 1:
        return x
    x = x.detach().clone()
    dist.all_reduce(x, op=dist.ReduceOp.MAX)
    return x


def total(x: Tensor) -> Tensor:
    """Sum over all ranks, without gradients."""
    if world_size() == 1:
        return x
    x = x.detach().clone()
    dist.all_reduce(x)
    return x


def whole(x: Tensor) -> Tensor:
    """A tensor that may be sharded over ranks (FSDP2's are), as a plain one on each."""
    return x.full_tensor() if hasattr(x, "full_tensor") else x


def best_device() -> torch.device:
    """CUDA where there is one, then MPS, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def gains_from_bfloat16(device: torch.device) -> bool:
    """Whether bf16 autocast is faster than float32: CUDA since Ampere, and CPUs with bf16 products in AMX or AVX-512
    (measured: 2–3× faster there, and 3× slower on CPUs without)."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        probes = (getattr(torch.cpu, f"_is_{name}_supported", None) for name in ("amx_tile", "avx512_bf16"))
        return any(probe is not None and probe() for probe in probes)
    return False
