"""Rank, world size, reductions and wrapping, and work that is shared out over processes.

Everything here works in a single process too, unwrapped. Several processes are started by torchrun; each gets an equal
share of every batch.
"""

import os
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from softvq import files, progress
from softvq.errors import ConfigError

Parallel = Literal["ddp", "fsdp"]


def active() -> bool:
    """Return True when a process group is up."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """Return this process's number, 0 when alone."""
    return dist.get_rank() if active() else 0


def world_size() -> int:
    """Return the number of processes that take part, 1 when alone."""
    return dist.get_world_size() if active() else 1


def start(device: torch.device) -> torch.device:
    """Join the group that torchrun describes, if it started this process; return this process's own device."""
    if active() or not _is_described(device):
        return device
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    try:
        # Rank 0 alone writes checkpoints: hours, not minutes, may pass for the others on a slow disk.
        with progress.waiting("waiting for the other processes of the group"):
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timedelta(hours=2))
    except (ValueError, RuntimeError, OSError) as error:
        reason = files.first_line(error).rstrip(".")
        raise ConfigError(f"the group of processes cannot be joined ({reason}); start them with torchrun.") from error
    return device


def _is_described(device: torch.device) -> bool:
    """Return True when torchrun describes a group of several processes in the environment.

    Raise `ConfigError` when only some of it is there, such as from a shell or a scheduler.
    """
    numbers = ("WORLD_SIZE", "RANK", *(("LOCAL_RANK",) if device.type == "cuda" else ()))
    words = {name: os.environ.get(name, "") for name in (*numbers, "MASTER_ADDR", "MASTER_PORT")}
    if words["WORLD_SIZE"] in ("", "1") and words["RANK"] in ("", "0"):
        return False
    how = "start several processes with torchrun, or unset it for one alone."
    if missing := [name for name, word in words.items() if not word]:
        given = next(f"{name}={word}" for name, word in words.items() if word)
        raise ConfigError(f"the environment has {given} but no {', '.join(missing)}: {how}")
    if odd := [name for name in numbers if not words[name].isdecimal()]:
        raise ConfigError(f"the environment has {odd[0]}={words[odd[0]]!r}, which is no number: {how}")
    if int(words["RANK"]) >= int(words["WORLD_SIZE"]):
        raise ConfigError(
            f"the environment has RANK={words['RANK']}, of WORLD_SIZE={words['WORLD_SIZE']} processes: {how}"
        )
    return True


def stop() -> None:
    """Leave the group."""
    if active():
        dist.destroy_process_group()


def barrier() -> None:
    """Wait for all ranks."""
    if world_size() > 1:
        dist.barrier()


def locked(folder: Path, setting: str | None = "out") -> AbstractContextManager:
    """Return a block in which these processes alone work in a folder; the first of them holds the lock."""
    return files.locked(folder, setting) if rank() == 0 else nullcontext()


def in_parts(
    count: int,
    size: int,
    path: Callable[[int], Path],
    make: Callable[[range, Callable[[int], object]], None],
    title: str = "",
    show: progress.Show = None,
) -> None:
    """Make files for `count` items in parts of `size`, each part in a file of its own, made by one process.

    `path` maps the number of a part's first item to its file. `make(numbers, done)` writes that file, whole or not at
    all, and calls `done` with the number of items finished since the last call. Parts whose file is there are not made
    again: a stopped command goes on, and the whole is the same for any number of processes. `show` is that of
    `progress`.
    """
    firsts = [first for first in range(0, count, size) if not path(first).is_file()]
    barrier()  # all have looked
    mine = [range(first, min(count, first + size)) for first in firsts[rank() :: world_size()]]
    total = sum(map(len, mine))
    with progress.bar(total, "image", title, show=show) as done:
        for numbers in mine:
            make(numbers, done)
    barrier()


def gathered(value: Any) -> list[Any]:
    """Return each rank's value (anything that pickles), in the order of ranks."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def wrapped(module: nn.Module, device: torch.device) -> nn.Module:
    """Return the module with its gradients averaged over ranks (DDP); itself when alone or without parameters."""
    if world_size() == 1 or not any(p.requires_grad for p in module.parameters()):
        return module
    ids = [device.index] if device.type == "cuda" else None
    with warnings.catch_warnings():  # broadcast_buffers has another name from PyTorch 2.13 on
        warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated")
        return DistributedDataParallel(module, device_ids=ids, broadcast_buffers=False, gradient_as_bucket_view=True)


def unsynchronised(module: nn.Module) -> AbstractContextManager:
    """Return a block whose backward passes are not reduced over ranks yet."""
    return module.no_sync() if isinstance(module, DistributedDataParallel) else nullcontext()


def shard(module: nn.Module, blocks: list[nn.Module]) -> None:
    """Split a module's parameters over ranks in place, each of `blocks` as a unit (FSDP2)."""
    from torch.distributed.fsdp import fully_shard  # costs a second, and only sharded runs need it

    if torch.__version__.startswith("2.6.") and next(module.parameters()).device.type == "cpu":
        raise ConfigError(
            "PyTorch 2.6 shares no parameters out between CPUs; use ddp, or PyTorch 2.7.", setting="parallel"
        )
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view")  # nothing here works in place
    for block in blocks:
        fully_shard(block)
    fully_shard(module)


class _Sum(torch.autograd.Function):
    """The sum over ranks, whose gradient is the sum of the ranks' gradients.

    PyTorch's own is deprecated, or private.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return total(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return total(gradient)


def mean(x: Tensor) -> Tensor:
    """Return the mean of a tensor over all ranks, with gradients that reach every rank's tensor."""
    if world_size() == 1:
        return x
    return _Sum.apply(x) / world_size()


def maximum(x: Tensor) -> Tensor:
    """Return the largest value over all ranks, without gradients."""
    if world_size() == 1:
        return x
    x = x.detach().clone()
    dist.all_reduce(x, op=dist.ReduceOp.MAX)
    return x


def total(x: Tensor) -> Tensor:
    """Return the sum over all ranks, without gradients."""
    if world_size() == 1:
        return x
    x = x.detach().clone(memory_format=torch.contiguous_format)
    dist.all_reduce(x)
    return x


def whole(x: Tensor) -> Tensor:
    """Return a tensor that may be sharded over ranks (FSDP2's are) as a plain one on each."""
    return x.full_tensor() if hasattr(x, "full_tensor") else x


def local(x: Tensor) -> Tensor:
    """Return this rank's part of a tensor that may be sharded."""
    return x.to_local() if hasattr(x, "to_local") else x


def is_sharded(module: nn.Module) -> bool:
    """Return True when a module's parameters are split over processes."""
    return any(hasattr(p, "full_tensor") for p in module.parameters())


def gathered_module(module: nn.Module) -> dict[str, Tensor]:
    """Return a sharded module's tensors whole, on the first process's CPU; nothing on the others."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict  # costs a second

    return get_model_state_dict(module, options=StateDictOptions(full_state_dict=True, cpu_offload=True))


def gathered_optimizers(module: nn.Module, optimizers: list[torch.optim.Optimizer]) -> dict[str, dict[str, Any]]:
    """Return the optimizers' state of each parameter of a sharded module, by the parameter's name.

    It is whole, on the first process's CPU; the others get nothing.
    """
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return get_optimizer_state_dict(module, optimizers, options=options).get("state", {})


@torch.no_grad()
def fill(target: Tensor, value: Tensor) -> None:
    """Copy a whole tensor into one that may be sharded."""
    if hasattr(target, "to_local"):
        from torch.distributed.tensor import distribute_tensor

        value = distribute_tensor(value.to(target.device), target.device_mesh, target.placements)
    target.copy_(value)
