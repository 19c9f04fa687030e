"""The state of a training run between two steps, and its checkpoints.

A checkpoint is a folder `step-0000500` with safetensors of each player, its average and its optimizers, and
`state.json`. It appears whole (by a rename) or not at all.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from softvq import distributed, files, saving
from softvq.errors import ConfigError, ModelError
from softvq.training.player import Player

Players = dict[str, Player]


@dataclass
class TrainState:
    """The players by name, and the number of steps done."""

    players: Players
    step: int = 0

    @property
    def trained(self) -> Players:
        """The players that are trained, which a checkpoint holds."""
        return {name: player for name, player in self.players.items() if not player.is_frozen}

    @property
    def norms(self) -> dict[str, float]:
        """The running averages of gradient norms, by player, of those that have one."""
        return {name: player.norm for name, player in self.trained.items() if player.norm is not None}

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Return all tensors by file and name; every process must call this.

        Tensors that are split over processes are gathered whole on the first process's CPU.
        """
        return {
            _file(name, part): tensors
            for name, player in self.trained.items()
            for part, tensors in player.gathered().items()
        }

    def load(self, tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Load the tensors that `tensors` returned, at whatever number of processes."""
        for name, player in self.trained.items():
            player.load({part: tensors[_file(name, part)] for part in player.parts})

    @property
    def files(self) -> list[str]:
        """The names of a checkpoint's files, without their ending."""
        return [_file(name, part) for name, player in self.trained.items() for part in player.parts]


def _file(player: str, part: str) -> str:
    return f"{player}-{part}" if part else player


class Checkpoints:
    """The checkpoints of a run, of which the newest `keep` stay."""

    def __init__(self, folder: Path, keep: int = 2):
        self.folder, self.keep = folder, keep

    def all(self) -> list[Path]:
        """Return the complete checkpoints, oldest first."""
        return saving.checkpoints(self.folder)

    def save(self, state: TrainState, meta: Mapping[str, Any]) -> Path:
        """Write the state and return its folder; then remove older checkpoints beyond `keep`."""
        target = self.folder / f"step-{state.step:07d}"
        tensors = state.tensors()
        if distributed.rank() == 0:
            counts = {name: len(some) for name, some in tensors.items()}
            self._write(target, tensors, {"step": state.step, "norms": state.norms, "tensors": counts, **meta})
        distributed.barrier()
        return target

    def _write(self, target: Path, parts: Mapping[str, Mapping[str, Tensor]], meta: Mapping[str, Any]) -> None:
        size = sum(files.size_of(tensors) for tensors in parts.values())
        with files.atomic_folder(target, size) as temporary:
            for part, tensors in parts.items():
                files.write_tensors(temporary / f"{part}.safetensors", tensors)
            files.write_json(temporary / "state.json", meta)
        for old in self.all()[: -self.keep]:
            shutil.rmtree(old)

    def load(self, state: TrainState) -> dict[str, Any]:
        """Load the newest checkpoint that is whole into `state`; return its `state.json`.

        Raise `ModelError` when none can be read.
        """
        reasons = []
        for folder in reversed(self.all()):
            try:
                meta = files.read_json(folder / "state.json")
                parts = {name: files.read_tensors(folder / f"{name}.safetensors") for name in state.files}
                for name, count in meta["tensors"].items():  # an optimizer may have no state at all
                    if len(parts[name]) != count:
                        raise ValueError(f"{name} holds {len(parts[name])} tensors instead of {count}")
                state.load(parts)
                state.step = int(meta["step"])
                for name, value in meta["norms"].items():
                    state.players[name].norm = float(value)
                return meta
            except (ValueError, KeyError, TypeError, RuntimeError) as error:
                reasons.append(f"{folder} ({str(error).strip().splitlines()[0]})")
        raise ModelError(
            f"no checkpoint can be read: {'; '.join(reasons)}; use another folder to start again.", setting="out"
        )


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return the fields in which two descriptions of runs differ, each as `field (… there, … now)`."""
    before, now = _flat(old), _flat(json.loads(json.dumps(new)))
    # Before, one class alone was possible, and contents were not noted.
    later = {key for key in now.keys() - before.keys() if key.endswith((".type", "images.contents"))}
    keys = sorted(key for key in (before.keys() | now.keys()) - later if before.get(key) != now.get(key))
    return [f"{key} ({before.get(key)!r} there, {now.get(key)!r} now)" for key in keys]


def check_same_run(folder: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Raise `ConfigError` when the run in a folder differs from this one.

    The message names the fields that differ and says what can be done instead.
    """
    if fields := differences(old, new):
        takes_init = "init" in new.get("recipe", {})
        start = f" (a new run whose field init is {folder} begins with its weights)" if takes_init else ""
        raise ConfigError(
            f"{folder} holds a run that differs in {', '.join(fields[:4])}; use another folder{start}, or the same "
            "settings to go on.",
            setting="out",
        )


def _flat(node: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(node, dict):
        return {prefix[:-1]: node}
    return {key: value for name, item in node.items() for key, value in _flat(item, f"{prefix}{name}.").items()}
