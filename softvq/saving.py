"""The part that tokenizers and generators share: a folder with the model, written, read and pushed to the hub.

The folder holds `model.safetensors`, `config.json` and a model card.

    model = Tokenizer.from_pretrained("owner/name", revision="v1", device="cuda", torch_dtype=torch.bfloat16)
    model.save_pretrained("folder"); model.push_to_hub("me/mine")

`config.json` holds `format`, the `kind` of model, its `config`, and `about`: recipe, data and measured figures. A run
that has not ended has the same content in `model.json`, and its weights in its checkpoints.
"""

import json
import re
import sys
import tempfile
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from softvq import config as configs
from softvq import hub, plugins
from softvq.errors import ConfigError, ModelError, Notice, UnknownVariant
from softvq.files import AGAIN, fingerprint, first_line, json_text, read_json, read_tensors, write_tensors, write_text
from softvq.hub import CARD, CONFIG, WEIGHTS
from softvq.runtime import pick_device

FORMAT = 1
UNFINISHED = "model.json"  # in a run's folder: what its checkpoints are the weights of
_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_ANY = "FOLDER OR OWNER/NAME"  # in a card: whatever the model is loaded as
S = TypeVar("S", bound="Saved")

# Reads somebody else's format: (config.json, tensors) -> our `config`, `about`, tensors; None: it is not that format.
Translate = Callable[
    [dict[str, Any], dict[str, Tensor]], tuple[dict[str, Any], dict[str, Any], dict[str, Tensor]] | None
]


class Saved(nn.Module, ABC):
    """A model that can be saved and found again.

    `config` is a frozen dataclass; `about` is free JSON that goes with it.
    """

    kind = ""
    name = ""  # what it was loaded as: a folder's or the hub's name

    def __init__(self, config: Any, about: dict[str, Any] | None = None):
        super().__init__()
        configs.check_numbers(config, type(config).__name__)
        self.config, self.about = config, about or {}

    @classmethod
    @abstractmethod
    def read_config(cls, config: Any, about: dict[str, Any]) -> tuple[Callable[[], "Saved"], int]:
        """Return a function that builds the model of a stored configuration, and its number of blocks and codebooks."""

    @abstractmethod
    def stored_config(self) -> dict[str, Any]:
        """Return the configuration as it is stored, JSON-ready, for `read_config` to read."""

    @abstractmethod
    def described(self, loaded_as: str) -> tuple[str, str]:
        """Return two parts of the model card: a summary, and Python lines that use the model called `loaded_as`."""

    translate: Translate = staticmethod(lambda config, tensors: None)

    def named(self, name: str, is_folder: bool) -> None:
        """Take note of the name that the model was loaded by; called once it is loaded, here without effect."""

    def check_loaded(self, file: Path) -> None:
        """Raise `ModelError` when the weights that were loaded cannot be a model's; here they always can."""

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The type of the weights, in which the network computes outside of autocast."""
        return next(self.parameters()).dtype

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the configuration and every weight, 16 hex digits that tell models apart."""
        return fingerprint(configs.identity(self.config), self.state_dict())

    @classmethod
    def from_pretrained(
        cls: type[S],
        name_or_folder: str | Path,
        *,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        device: str | torch.device | None = None,
        torch_dtype: torch.dtype | str | None = None,
        average: bool = True,
    ) -> S:
        """Return a model in evaluation mode, by its name or folder.

        It is read from a folder, from those bundled with the package (`softvq-emoji-64`, `emoji-sit`), or from the hub
        (`owner/name`, `owner/name@revision`). The authors' own format is read too.

        `device` and `torch_dtype` are the place and the floating-point type of the model (default: the CPU and float32,
        whatever PyTorch's own defaults are). A run's folder without a finished model gives the average of its last
        checkpoint, with a `Notice`; `average=False` gives a run's trained weights instead.

        Raise `ModelError` or `ConfigError`, with one sentence, when something is missing, damaged or unknown.
        """
        torch_dtype = float_type(torch_dtype)
        if not isinstance(name_or_folder, str | Path) or not str(name_or_folder):
            raise ModelError(f"a model's name or folder is wanted, not {name_or_folder!r}.")
        device = None if device is None else pick_device(device)
        saved = load(name_or_folder, cls.kind, cls.translate, revision, cache_dir, average)
        with defaults(torch.float32, "cpu"):
            try:
                make, parts = cls.read_config(saved.config, saved.about)
            except RecursionError:
                raise ConfigError(f"{saved.described_in} nests quantizers too deeply.") from None
            except UnknownVariant as error:
                raise ModelError(_unregistered(saved, error), setting="plugin") from error
            model = build(make, parts, saved.file, saved.tensors)
        if not isinstance(model, cls):
            raise ModelError(f"{name_or_folder} holds a {type(model).__name__}, not a {cls.__name__}.")
        model.check_loaded(saved.file)
        model.name = str(name_or_folder)
        model.named(model.name, Path(name_or_folder).is_dir())
        return model.to(device=device, dtype=torch_dtype).eval()

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype = torch.float32) -> None:
        """Write `config.json`, `model.safetensors` and a model card into `folder`, each whole or not at all.

        `torch.float16` halves the file; it is loaded as float32 again. Raise `ModelError` when a weight is not finite
        in that type.
        """
        self._save(folder, dtype, _ANY)

    def push_to_hub(self, name: str, *, private: bool = False, dtype: torch.dtype = torch.float32) -> str:
        """Upload the model to the hub as `owner/name`, with configuration, weights and model card; return its address.

        It needs a hub account (`hf auth login`, or the variable HF_TOKEN).
        """
        with tempfile.TemporaryDirectory() as folder:
            self._save(folder, dtype, name)
            return hub.push(Path(folder), name, private)

    def _save(self, folder: str | Path, dtype: torch.dtype, name: str) -> None:
        if dtype not in _FLOATS:
            raise ModelError(f"weights are stored in a floating-point type, not {dtype}.")
        if Path(folder).is_file():
            raise ModelError(f"{folder} is a file; a model is saved into a folder.")
        tensors = {name: p.to(dtype) for name, p in self.named_parameters()}
        summary, usage = self.described(name)
        title = f"softvq {self.about.get('recipe', {}).get('name', self.kind)}"
        self.name = self.name or (str(folder) if name == _ANY else name)
        save(Path(folder), self.content(), {**self.state_dict(), **tensors}, card(title, summary, usage, self.about))

    def content(self) -> dict[str, Any]:
        """Return the content of `config.json`."""
        return {"format": FORMAT, "kind": self.kind, "config": self.stored_config(), "about": self.about}


@contextmanager
def defaults(dtype: torch.dtype, device: str) -> Iterator[None]:
    """Open a block in which PyTorch's default type and device are these, whatever its caller has set."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            yield
    finally:
        torch.set_default_dtype(before)


def _unregistered(saved: "SavedModel", error: UnknownVariant) -> str:
    files = saved.about.get("plugins")
    which = f" ({', '.join(map(str, files))}, says its configuration)" if isinstance(files, dict) and files else ""
    return (
        f"{saved.described_in}: {str(error).rstrip('.?')}; if a Python file of one's own adds {error.name!r}, import "
        f"it first{which}, or load it as a plugin."
    )


@dataclass(frozen=True)
class SavedModel:
    """A model's content, and the file of weights that it was found in.

    The tensors are read when they are first needed, unless they are `given`: a configuration that is refused costs
    nothing.
    """

    file: Path
    described_in: Path
    config: Any
    about: dict[str, Any]
    given: dict[str, Tensor] | None = None

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """The weights by name, read from the file at the first use unless they were given."""
        return read_tensors(self.file) if self.given is None else self.given


def save(folder: Path, content: Mapping[str, Any], tensors: Mapping[str, Tensor], text: str) -> None:
    """Write a model folder; each file appears whole or not at all.

    A README.md that is not a card of ours stays. Raise `ModelError` when a tensor is not finite (float16 ends at
    65,504): such a model could not be loaded again.
    """
    for name, tensor in tensors.items():
        if not _finite(tensor):
            raise ModelError(f"{name} holds NaN or Inf as {tensor.dtype}; nothing was written to {folder}.")
    config = json_text(content)
    write_tensors(folder / WEIGHTS, tensors)
    write_text(folder / CONFIG, config)
    if _is_our_card(folder / CARD):
        write_text(folder / CARD, text)


def float_type(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """Return a floating-point type of torch, which may be given by its name; `ModelError` when it is none."""
    named = getattr(torch, dtype, dtype) if isinstance(dtype, str) else dtype
    if named is not None and named not in _FLOATS:
        raise ModelError(f"torch_dtype must be a floating-point type of torch, not {dtype!r}.")
    return named


def load(
    name_or_folder: str | Path,
    kind: str,
    translate: Translate,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    average: bool = True,
) -> SavedModel:
    """Find and read a model folder of this `kind`, in our format or one that `translate` knows.

    Raise `ModelError`, which says what is missing or wrong.
    """
    if not average:
        return _checkpoint(Path(name_or_folder), kind, "model")
    folder = hub.find(name_or_folder, revision, cache_dir)
    if not (folder / CONFIG).is_file() and (folder / UNFINISHED).is_file():
        return _checkpoint(folder, kind, "model-average")
    described_in = folder / CONFIG
    config = read_json(described_in)
    if "format" not in config:
        translated = translate(config, read_tensors(folder / WEIGHTS))
        if translated is not None:
            return SavedModel(folder / WEIGHTS, described_in, *translated)
    return SavedModel(folder / WEIGHTS, described_in, *_content(config, described_in, kind))


def _content(config: dict[str, Any], described_in: Path, kind: str) -> tuple[Any, dict[str, Any]]:
    if config.get("format") != FORMAT or "config" not in config or not _is_about(config.get("about", {})):
        raise ModelError(f"{described_in} is not a softvq model configuration (format {FORMAT}).")
    if extra := sorted(config.keys() - {"format", "kind", "config", "about"}):
        raise ModelError(f"{described_in} has the unknown key {extra[0]!r}; valid: format, kind, config, about.")
    if config.get("kind") != kind:
        raise ModelError(f"{described_in.parent} holds a {config.get('kind')!r}, not a {kind!r}.")
    return config["config"], config.get("about", {})


def kind_of(name_or_folder: str | Path, revision: str | None = None) -> str | None:
    """Return the kind of a model, `tokenizer` or `generator`, by what its folder says; None for other formats."""
    folder = hub.find(name_or_folder, revision)
    unfinished = not (folder / CONFIG).is_file() and (folder / UNFINISHED).is_file()
    return read_json(folder / (UNFINISHED if unfinished else CONFIG)).get("kind")


def checkpoints(folder: Path) -> list[Path]:
    """Return a run's complete checkpoints in its folder `checkpoints`, oldest first."""
    folders = [path for path in folder.glob("step-*") if re.fullmatch(r"step-\d+", path.name)]
    return sorted(folders, key=lambda path: int(path.name.split("-")[1]))


def _checkpoint(run: Path, kind: str, part: str) -> SavedModel:
    """Return the weights of a run's last checkpoint that can be read.

    `part` is `model-average` for the averaged ones, or `model` for the trained ones.
    """
    described_in = next((run / name for name in (UNFINISHED, f"model/{CONFIG}") if (run / name).is_file()), None)
    folders = checkpoints(run / "checkpoints")
    if described_in is None or not folders:
        raise ModelError(f"{run} is no run's folder with checkpoints.")
    config, about = _content(read_json(described_in), described_in, kind)
    reasons = []
    for folder in reversed(folders):
        step, file = int(folder.name.split("-")[1]), folder / f"{part}.safetensors"
        if not file.exists():  # a run whose model has no average
            file = folder / "model.safetensors"
        try:
            tensors = read_tensors(file)
        except ModelError as error:
            reasons.append(str(error).removesuffix("."))
            continue
        if file.stem == "model":  # the model and what is trained with it, as one module
            own = {name.removeprefix("model."): t for name, t in tensors.items() if name.startswith("model.")}
            tensors = own or tensors
        if part == "model-average":
            which = "this is the average of" if file.stem == part else "these are"
            unfitted = "latent_std" in tensors and bool((tensors["latent_std"] == 1).all())
            more = ", whose latents are not normalised: their statistics are fitted when the run has ended"
            warnings.warn(
                f"the run in {run} has not ended: {which} its weights at step {step}{more if unfitted else ''}.",
                Notice,
                stacklevel=4,
            )
        return SavedModel(file, described_in, config, {**about, "step": step}, tensors)
    raise ModelError(f"no checkpoint of {run} can be read: {'; '.join(reasons)}.")


def build(make: Callable[[], nn.Module], parts: int, file: Path, tensors: dict[str, Tensor]) -> nn.Module:
    """Return the model that `make` builds, with the tensors of a file.

    `parts` is the number of blocks and codebooks that it will have: more than the file has tensors would cost memory
    and time before the difference is found. Raise `ModelError` when the tensors do not fit the model.
    """
    if parts > len(tensors):
        raise ModelError(
            f"{file} has only {len(tensors)} tensors, but the model it is for has {parts} blocks and codebooks."
        )
    try:
        with defaults(torch.float32, "meta"):
            model = make()
    except NotImplementedError:  # a constructor that looks at numbers
        model = None
    except (RuntimeError, OverflowError, TypeError) as error:  # what torch says of sizes beyond 64 bits
        if isinstance(error, TypeError) and "verflow" not in str(error):
            raise
        raise ModelError(f"{file} is for a model that is too large ({first_line(error)}).") from error
    if model is not None:
        _assign(model, file, tensors)
    if model is None or _is_incomplete(model):
        with defaults(torch.float32, "cpu"):
            model = make()
        _assign(model, file, tensors)
    return model


def _is_incomplete(model: nn.Module) -> bool:
    """Return True when the model holds tensors that no file has and that must be computed, such as unsaved buffers."""
    own = [value for module in model.modules() for value in vars(module).values()]
    return any(isinstance(tensor, Tensor) and tensor.is_meta for tensor in [*model.buffers(), *own])


def _assign(model: nn.Module, file: Path, tensors: dict[str, Tensor]) -> None:
    own = model.state_dict()
    if own.keys().isdisjoint(tensors) and own:
        raise ModelError(f"{file} holds another model: none of its {len(tensors)} tensors has an expected name.")
    if missing := sorted(own.keys() - tensors.keys()):
        raise ModelError(f"{file} lacks {_some(missing)}.")
    if extra := sorted(tensors.keys() - own.keys()):
        raise ModelError(f"{file} has {_some(extra)}, which the model has not.")
    for name, tensor in tensors.items():
        if tensor.shape != own[name].shape:
            raise ModelError(f"{file}: {name} has shape {tuple(tensor.shape)}, expected {tuple(own[name].shape)}.")
        if own[name].is_floating_point() and tensor.dtype not in _FLOATS:
            raise ModelError(f"{file}: {name} is {tensor.dtype}, expected a floating-point type.")
    converted = {name: tensor.to(own[name].dtype) for name, tensor in tensors.items()}
    for name, tensor in converted.items():
        if not _finite(tensor):
            raise ModelError(
                f"{file}: {name} holds NaN or Inf; the file is damaged ({AGAIN}) or its training diverged."
            )
    model.load_state_dict(converted, assign=True)


def _finite(tensor: Tensor) -> bool:
    """Return True when a tensor holds neither NaN nor Inf: NaN carries over to both bounds."""
    if not tensor.is_floating_point():
        return True
    return tensor.numel() == 0 or all(bool(bound.isfinite()) for bound in tensor.aminmax())


def _is_about(about: Any) -> bool:
    """Return True when the parts of `about` that are read here have the right types."""
    if not isinstance(about, dict) or not isinstance(about.get("recipe", {}), dict):
        return False
    figures = about.get("figures", {})
    plain = isinstance(figures, dict) and all(isinstance(value, int | float | str) for value in figures.values())
    floor = figures.get("psnr_floor", 0.0) if plain else None
    limits = about.get("domain_limits", {})
    plain = isinstance(floor, int | float) and isinstance(limits, dict) and all(map(_is_range, limits.values()))
    return plain and _is_text(json.dumps(about, ensure_ascii=False))


def _is_text(text: str) -> bool:
    """Return True when a text can be written: half a character of a damaged file cannot, a file's odd name can."""
    try:
        text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False
    return True


def _is_range(pair: Any) -> bool:
    return isinstance(pair, list) and len(pair) == 2 and all(isinstance(end, int | float) for end in pair)


def card(title: str, summary: str, usage: str, about: Mapping[str, Any]) -> str:
    """Return a model card in Markdown.

    It says what the model is, how to use it, and what `about` tells of its making and figures.
    """
    from huggingface_hub import ModelCard, ModelCardData  # costs 0.3 s, and only saving needs it

    recipe, plugin_files = about.get("recipe", {}), list(about.get("plugins", {}))
    if plugin_files:
        usage = "\n".join(["import softvq\n", *(f'softvq.load_plugin("{name}")' for name in plugin_files), usage])
    lines = [f"# {title}", "", summary, "", "```python", usage, "```", ""]
    if "command" in about:
        lines += [f"Trained with `{about['command']}`; every setting is in `{CONFIG}`.", ""]
    if plugin_files:
        lines += [f"Needs the file that it was trained with: {', '.join(f'`{name}`' for name in plugin_files)}.", ""]
    if "data" in recipe:
        lines += [f"Training images: `{recipe['data']}`; validation images: `{recipe.get('val')}`.", ""]
    if "source" in about:
        lines += [f"Converted from {about['source']}.", ""]
    figures = about.get("figures", {})
    if figures:
        cells = {key: f"{value:.4f}" if isinstance(value, float) else value for key, value in figures.items()}
        lines += ["| figure | measured |", "|---|---|", *(f"| {key} | {value} |" for key, value in cells.items()), ""]
    tags = ["softvq", "image-tokenizer"]
    data = ModelCardData(library_name="softvq", tags=tags, license=about.get("license"))
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n".join(lines)))


def _is_our_card(path: Path) -> bool:
    """Return True when there is no README.md, or one that `card` made."""
    if not path.exists():
        return True
    return re.match(r"---\n(?:.*\n)*?library_name: softvq\n", path.read_bytes().decode(errors="replace")) is not None


def _some(names: list[str]) -> str:
    rest = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ("the tensor " if len(names) == 1 else "the tensors ") + ", ".join(names[:3]) + rest


def recorded_plugins(config: Any) -> dict[str, Any]:
    """Return the part of a model's `about` that names the code it was made with and that is not ours.

    These are the plugins that were loaded, and the files of the classes in its configuration. It is empty when there
    are none.
    """
    record = plugins.described()
    for cls in _classes(config):
        file = getattr(sys.modules.get(cls.__module__), "__file__", None)
        package = cls.__module__.partition(".")[0]
        known = package == "softvq" or any(re.match(rf"{re.escape(package)}\b(?!\.py)", name) for name in record)
        if not known and file is not None:
            record.setdefault(Path(file).name, plugins.checksum(Path(file)))
    return {"plugins": record} if record else {}


def _classes(value: Any) -> Iterator[type]:
    """Yield the classes of nested dataclasses."""
    if is_dataclass(value):
        yield type(value)
        for field in fields(value):
            yield from _classes(getattr(value, field.name))
