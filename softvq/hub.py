"""A model folder, read, written, found and shared: `model.safetensors`, `config.json` and a model card. Knows no model.

`config.json` holds `format`, the `kind` of model, its `config`, and `about`: recipe, data and measured figures.
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from softvq.errors import ModelError
from softvq.files import first_line, json_text, read_json, read_tensors, write_tensors, write_text

FORMAT = 1
WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
BUNDLED = Path(__file__).parent / "assets" / "models"


@dataclass(frozen=True)
class SavedModel:
    """A model's content, and the weights' file it was found in (`config.json` is beside it). The tensors are read when
    they are first asked for, unless they are given: a configuration that is refused costs nothing."""

    file: Path
    config: dict[str, Any]
    about: dict[str, Any]
    given: dict[str, Tensor] | None = None

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        return read_tensors(self.file) if self.given is None else self.given


# Reads somebody else's format: (config.json, tensors) -> our `config`, `about`, tensors; None: it is not that format.
Translate = Callable[
    [dict[str, Any], dict[str, Tensor]], tuple[dict[str, Any], dict[str, Any], dict[str, Tensor]] | None
]


def save(folder: str | Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor], card: str) -> None:
    """Write a model folder; each file appears whole or not at all. A README.md that is not a card of ours stays.

    `ModelError` when a tensor is not finite (float16 ends at 65,504): such a model could not be loaded again.
    """
    folder = Path(folder)
    for name, tensor in tensors.items():
        if not _finite(tensor):
            raise ModelError(f"{name} holds NaN or Inf as {tensor.dtype}; nothing was written to {folder}.")
    text = json_text({"format": FORMAT, **config})
    write_tensors(folder / WEIGHTS, tensors)
    write_text(folder / CONFIG, text)
    if not (folder / CARD).exists() or (folder / CARD).read_bytes().startswith(_CARD_START.encode()):
        write_text(folder / CARD, card)


def load(name_or_folder: str | Path, kind: str, translate: Translate) -> SavedModel:
    """Find and read a model folder of this `kind`, ours or one that `translate` knows; `ModelError` says what is
    missing or wrong."""
    folder = find(name_or_folder)
    config = read_json(folder / CONFIG)
    if "format" not in config:
        translated = translate(config, read_tensors(folder / WEIGHTS))
        if translated is not None:
            return SavedModel(folder / WEIGHTS, *translated)
    if config.get("format") != FORMAT or "config" not in config or not _is_about(config.get("about", {})):
        raise ModelError(f"{folder / CONFIG} is not a softvq model configuration (format {FORMAT}).")
    if extra := sorted(config.keys() - {"format", "kind", "config", "about"}):
        raise ModelError(f"{folder / CONFIG} has the unknown key {extra[0]!r}; valid: format, kind, config, about.")
    if config.get("kind") != kind:
        raise ModelError(f"{folder} holds a {config.get('kind')!r}, not a {kind!r}.")
    return SavedModel(folder / WEIGHTS, config["config"], config.get("about", {}))


def find(name_or_folder: str | Path) -> Path:
    """The folder of a model: a path (of the model, or of the run that made it), the name of a bundled model, or a hub
    name `owner/model`, downloaded once."""
    folder, name = Path(name_or_folder), str(name_or_folder)
    try:
        if folder.is_dir():
            inside = folder / "model"
            return inside if (inside / CONFIG).is_file() and not (folder / CONFIG).exists() else folder
        if (BUNDLED / name / CONFIG).is_file():
            return BUNDLED / name
    except (OSError, ValueError) as error:  # too long a name, a null byte
        raise ModelError(f"{name[:80]!r} can be no model's name or folder ({first_line(error)}).") from error
    if re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name):
        return download(name, (CONFIG, WEIGHTS), "their folder")
    raise ModelError(f"there is no model folder {name!r}, and no bundled model of that name ({', '.join(bundled())}).")


def bundled() -> list[str]:
    """The names of the models that ship with the package."""
    return sorted(path.parent.name for path in BUNDLED.glob(f"*/{CONFIG}"))


def download(name: str, files: tuple[str, ...], instead: str, setting: str | None = None) -> Path:
    """The local folder with these files of a hub repository `owner/name`: fetched once, with progress bars, and found
    without a network from then on. `instead` says what can be given where that fails, `setting` as which argument."""
    from huggingface_hub import errors, snapshot_download  # costs 0.3 s, and only a download needs it

    cause: Exception | None = None
    try:
        folder = Path(snapshot_download(name, allow_patterns=list(files)))
        if all((folder / file).is_file() for file in files):
            return folder
        reason = "only some of its files were downloaded before, and the rest cannot be had now"
    except errors.LocalEntryNotFoundError as error:
        reason = "it was not downloaded before, and the hub cannot be reached or HF_HUB_OFFLINE is set"
        cause = error
    except errors.RepositoryNotFoundError as error:
        reason, cause = "the hub has no such repository, or you may not read it", error
    except Exception as error:  # the hub raises dozens of kinds; the user needs the name and the reason
        reason, cause = first_line(error), error
    raise ModelError(
        f"{name!r} is no folder here and could not be had from the hub ({reason}); "
        f"download its {' and '.join(files)} and give {instead}.",
        setting=setting,
    ) from cause


def push(folder: Path, name: str, private: bool) -> str:
    """Upload a model folder to the hub as `owner/name`, which is made where it is missing; gives its address.

    Signs in as `huggingface_hub` does: with `hf auth login`, or the variable HF_TOKEN.
    """
    from huggingface_hub import HfApi

    if name.count("/") != 1:
        raise ModelError(f"{name!r} is not a hub name; write owner/name.")
    try:
        hub = HfApi()
        address = hub.create_repo(name, private=private, exist_ok=True)
        hub.upload_folder(repo_id=name, folder_path=folder, allow_patterns=[CONFIG, WEIGHTS, CARD])
    except Exception as error:  # as above
        raise ModelError(f"{name!r} could not be uploaded to the hub ({first_line(error)}).") from error
    return str(address)


def fingerprint(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """16 hex digits of a configuration and every weight, whatever type and file they are stored in."""
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().float().flatten().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def build(make: Callable[[], nn.Module], parts: int, saved: SavedModel) -> nn.Module:
    """The model that `make` gives, with the saved tensors. `parts` is how many blocks and codebooks it is to have:
    more than the file has tensors would cost memory and time before the difference is found."""
    if parts > len(saved.tensors):
        raise ModelError(
            f"{saved.file} has only {len(saved.tensors)} tensors, "
            f"but the model it is for has {parts} blocks and codebooks."
        )
    try:
        with torch.device("meta"):
            model = make()
    except (RuntimeError, OverflowError, TypeError) as error:  # what torch says of sizes beyond 64 bits
        raise ModelError(f"{saved.file} is for a model that is too large ({first_line(error)}).") from error
    _assign(model, saved)
    return model


def _assign(model: nn.Module, saved: SavedModel) -> None:
    own = model.state_dict()
    where = saved.file
    if own.keys().isdisjoint(saved.tensors):
        raise ModelError(f"{where} holds another model: none of its {len(saved.tensors)} tensors has an expected name.")
    if missing := sorted(own.keys() - saved.tensors.keys()):
        raise ModelError(f"{where} lacks {_some(missing)}.")
    if extra := sorted(saved.tensors.keys() - own.keys()):
        raise ModelError(f"{where} has {_some(extra)}, which the model has not.")
    for name, tensor in saved.tensors.items():
        if tensor.shape != own[name].shape:
            raise ModelError(f"{where}: {name} has shape {tuple(tensor.shape)}, expected {tuple(own[name].shape)}.")
        if tensor.dtype not in _FLOATS:
            raise ModelError(f"{where}: {name} is {tensor.dtype}, expected a floating-point type.")
    tensors = {name: tensor.to(own[name].dtype) for name, tensor in saved.tensors.items()}
    for name, tensor in tensors.items():
        if not _finite(tensor):
            raise ModelError(f"{where}: {name} holds NaN or Inf; the file is damaged or its training diverged.")
    model.load_state_dict(tensors, assign=True)


_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def _finite(tensor: Tensor) -> bool:
    """Whether a tensor holds neither NaN nor Inf: NaN carries over to both bounds."""
    return tensor.numel() == 0 or all(bool(bound.isfinite()) for bound in tensor.aminmax())


def _is_about(about: Any) -> bool:
    """Whether what is read of a model's `about` is of the right kind."""
    if not isinstance(about, dict) or not isinstance(about.get("recipe", {}), dict):
        return False
    figures = about.get("figures", {})
    plain = isinstance(figures, dict) and all(isinstance(value, int | float | str) for value in figures.values())
    floor = figures.get("psnr_floor", 0.0) if plain else None
    return isinstance(floor, int | float) and "\\ud" not in json.dumps(about)  # half a character is no text


_CARD_START = "---\nlibrary_name: softvq\n"


def card(title: str, summary: str, usage: str, about: Mapping[str, Any]) -> str:
    """A model card in Markdown: what the model is, how to use it, and what `about` says of its making and figures."""
    recipe = about.get("recipe", {})
    licence = [f"license: {about['license']}"] if "license" in about else []
    head = [_CARD_START + "tags: [softvq, image-tokenizer]", *licence, "---", "", f"# {title}", ""]
    lines = [*head, summary, "", "```python", usage, "```", ""]
    if "command" in about:
        lines += [f"Trained with `{about['command']}`; every setting is in `{CONFIG}`.", ""]
    if "data" in recipe:
        lines += [f"Training images: `{recipe['data']}`; validation images: `{recipe.get('val')}`.", ""]
    if "source" in about:
        lines += [f"Converted from {about['source']}.", ""]
    figures = about.get("figures", {})
    if figures:
        cells = {key: f"{value:.4f}" if isinstance(value, float) else value for key, value in figures.items()}
        lines += ["| figure | measured |", "|---|---|", *(f"| {key} | {value} |" for key, value in cells.items()), ""]
    return "\n".join(lines)


def _some(names: list[str]) -> str:
    rest = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ("the tensor " if len(names) == 1 else "the tensors ") + ", ".join(names[:3]) + rest
