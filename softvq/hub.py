"""A model folder, read, written and found: `model.safetensors` + `config.json`. Knows no model.

`config.json` holds `format`, the `kind` of model, its `config`, and `about`: recipe, data and measured figures.
"""

import json
import os
import tempfile
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

FORMAT = 1
WEIGHTS, CONFIG = "model.safetensors", "config.json"
BUNDLED = Path(__file__).parent / "assets" / "models"


class ModelError(ValueError):
    """A model that cannot be loaded; the message is one sentence for the user."""


@dataclass(frozen=True)
class SavedModel:
    """A model folder's content, and where it was found."""

    folder: Path
    config: dict[str, Any]
    about: dict[str, Any]
    tensors: dict[str, Tensor]


def save(
    folder: str | Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor], dtype: torch.dtype = torch.float32
) -> None:
    """Write a model folder, floats as `dtype`; each file appears whole or not at all."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder / WEIGHTS, {name: t.to(dtype) if t.is_floating_point() else t for name, t in tensors.items()})
    write_json(folder / CONFIG, {"format": FORMAT, **config})


def load(name_or_folder: str | Path, kind: str) -> SavedModel:
    """Find and read a model folder of this `kind`; `ModelError` says what is missing or wrong."""
    folder = find(name_or_folder)
    config = read_json(folder / CONFIG)
    if config.get("format") != FORMAT or "config" not in config or not isinstance(config.get("about", {}), dict):
        raise ModelError(f"{folder / CONFIG} is not a softvq model configuration (format {FORMAT}).")
    if config.get("kind") != kind:
        raise ModelError(f"{folder} holds a {config.get('kind')}, not a {kind}.")
    return SavedModel(folder, config["config"], config.get("about", {}), read_tensors(folder / WEIGHTS))


def find(name_or_folder: str | Path) -> Path:
    """The folder of a model: a path (of the model, or of the run that made it), the name of a bundled model, or a hub
    name `owner/model`, downloaded once."""
    folder = Path(name_or_folder)
    if folder.is_dir():
        inside = folder / "model"
        return inside if (inside / CONFIG).is_file() and not (folder / CONFIG).exists() else folder
    name = str(name_or_folder)
    if (BUNDLED / name / CONFIG).is_file():
        return BUNDLED / name
    if name.count("/") == 1 and not name.startswith((".", "/", "~")) and not folder.parent.is_dir():
        return _download(name)
    raise ModelError(f"there is no model folder {name!r}, and no bundled model of that name ({', '.join(bundled())}).")


def bundled() -> list[str]:
    """The names of the models that ship with the package."""
    return sorted(path.parent.name for path in BUNDLED.glob(f"*/{CONFIG}"))


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download  # costs 0.3 s, and only a download needs it

    try:
        return Path(snapshot_download(name, allow_patterns=[CONFIG, WEIGHTS]))
    except Exception as error:  # the hub raises dozens of kinds; the user needs the name and the reason
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"{name!r} is no folder here and could not be had from the hub ({reason}); "
            "download its config.json and model.safetensors and give their folder instead."
        ) from error


def assign(model: nn.Module, saved: SavedModel) -> None:
    """Give a model (made on the meta device) the saved tensors; names and shapes must match one to one."""
    own = model.state_dict()
    where = saved.folder / WEIGHTS
    if missing := sorted(own.keys() - saved.tensors.keys()):
        raise ModelError(f"{where} lacks {_some(missing)}.")
    if extra := sorted(saved.tensors.keys() - own.keys()):
        raise ModelError(f"{where} has {_some(extra)}, which config.json does not describe.")
    for name, tensor in saved.tensors.items():
        if tensor.shape != own[name].shape:
            raise ModelError(f"{where}: {name} has shape {tuple(tensor.shape)}, expected {tuple(own[name].shape)}.")
        if not tensor.isfinite().all():
            raise ModelError(f"{where}: {name} holds NaN or Inf; the file is damaged or its training diverged.")
    model.load_state_dict({name: tensor.to(own[name].dtype) for name, tensor in saved.tensors.items()}, assign=True)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """A safetensors file's tensors on the CPU."""
    if not path.is_file():
        raise ModelError(f"{path} does not exist.")
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, TypeError, KeyError) as error:
        raise ModelError(f"{path} is truncated or not a safetensors file ({error}).") from error


def read_metadata(path: Path) -> dict[str, str]:
    """The text that a safetensors file carries beside its tensors."""
    with safe_open(path, framework="pt") as file:
        return file.metadata() or {}


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file atomically."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with atomic(path) as temporary:
        temporary.write_bytes(to_bytes(plain, metadata=dict(metadata) if metadata else None))


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{path} does not exist.") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} is not readable JSON ({error}).") from error
    if not isinstance(data, dict):
        raise ModelError(f"{path} must hold a JSON object.")
    return data


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write a JSON object atomically, readable by people."""
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


@contextmanager
def atomic(path: Path):
    """A temporary file beside `path` that takes its place when the block ends well, and is removed when it does not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _some(names: list[str]) -> str:
    rest = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ("the tensor " if len(names) == 1 else "the tensors ") + ", ".join(names[:3]) + rest
