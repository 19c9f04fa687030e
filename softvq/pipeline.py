"""A generator and the tokenizer whose latents it knows, together: images from classes.

    pipeline = Pipeline.from_pretrained("emoji-sit")
    images = pipeline(["flags", "food-drink"], num=16, seed=0, steps=20, guidance=3.5)      # PIL images
    pipeline.write_npz("samples.npz", num=50_000)                   # the array that ADM's evaluator reads

An image is a function of the seed and its number: neither the batch nor the number of processes changes it (in float32,
to one grey level).
"""

import inspect
import json
import re
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from softvq import __version__, distributed, files, hub
from softvq import progress as progresses
from softvq.config import from_dict, nearest
from softvq.data.arrays import ArrayFile, write_arrays
from softvq.data.images import to_bytes
from softvq.errors import ConfigError, DataError, check_whole
from softvq.figures import class_grid, enlarge, format_of, save_picture
from softvq.generators.base import Generator, Noise, Sampling
from softvq.models import AnyTokenizer, check_finite, tokenizer_of
from softvq.randomness import Stream, rng
from softvq.runtime import Precision, autocast, pick_device, pick_precision
from softvq.saving import float_type, recorded_plugins
from softvq.transports.guidance import Guidance

Classes = Any  # names or numbers, one or several: a list, an array, a tensor; None
PART = 512  # images of a part of an unfinished array
_MOST_SHOWN = 1024  # images of a picture
_VERSIONS = {"softvq": None, "torch": None}  # written beside images, and no part of what they are

# As in `progress`; or what the steps of a batch go through, such as `tqdm`.
Progress = bool | None | Callable[[Sequence], Iterable]


@dataclass(frozen=True)
class Request:
    """The images that are wanted, and all that they are a function of besides the models; made by `Pipeline.request`.

    `classes` are numbers, taken in turn; without any, all are taken in turn (`labels` balanced) or at random by seed
    and number.
    """

    num: int
    seed: int
    classes: tuple[int, ...]
    labels: Literal["balanced", "random"]
    sampling: Sampling
    batch_size: int
    precision: Precision


class Pipeline:
    """A generator and a tokenizer (diffusers' too); `name` is that of the generator in what is written."""

    def __init__(self, generator: Generator, tokenizer: AnyTokenizer, name: str = ""):
        shape = (tokenizer.config.tokens, tokenizer.config.latent_dim)
        if shape != generator.shape:
            raise ConfigError(
                f"the tokenizer has latents of {shape[0]} × {shape[1]}, but {name or 'the generator'} makes "
                f"{generator.shape}.",
                setting="tokenizer",
            )
        self.generator, self.tokenizer, self.name = generator, tokenizer, name

    @classmethod
    def from_pretrained(
        cls,
        name_or_folder: str | Path,
        *,
        tokenizer: str | Path | AnyTokenizer | None = None,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        device: str | torch.device | None = None,
        torch_dtype: torch.dtype | str | None = None,
        average: bool = True,
    ) -> "Pipeline":
        """Return the pipeline of a generator and its tokenizer.

        The generator is found as in `Generator.from_pretrained`. The tokenizer is the one that it was trained with, or
        another one that makes the same latents, given by name or folder, or loaded. Raise `ModelError` when it makes
        other latents, `ConfigError` when it is not known or does not fit.
        """
        generator = Generator.from_pretrained(name_or_folder, revision=revision, cache_dir=cache_dir, average=average)
        chosen_tokenizer = tokenizer_of(generator, str(name_or_folder), tokenizer, cache_dir)
        return cls(generator, chosen_tokenizer, str(name_or_folder)).to(device, torch_dtype)

    def to(
        self, device: str | torch.device | torch.dtype | None = None, dtype: torch.dtype | str | None = None
    ) -> "Pipeline":
        """Move both models to a device, a floating-point type, or both; return the pipeline."""
        if isinstance(device, torch.dtype):
            device, dtype = None, device
        device = None if device is None else pick_device(device)
        for model in (self.generator, self.tokenizer):
            model.to(device=device, dtype=float_type(dtype))
        return self

    @property
    def device(self) -> torch.device:
        """The device of the generator."""
        return self.generator.device

    @property
    def image_size(self) -> int:
        """The images' width and height in pixels."""
        return self.tokenizer.config.image_size

    @property
    def classes(self) -> list[str]:
        """The names of the generator's classes by number.

        They are those stored with it, or ImageNet's for one of 1,000; there are none where it knows no classes.
        """
        names, count = self.generator.about.get("classes"), self.generator.classes
        if names and count:
            return list(names)
        if count == 1000:
            return json.loads((hub.BUNDLED.parent / "imagenet" / "classes.json").read_text(encoding="utf-8"))
        return [str(number) for number in range(count)]

    def class_number(self, name: str | int) -> int:
        """Return the number of a class given by its whole name, by a synonym that no other class has, or by number.

        `tench` is a synonym in `tench, Tinca tinca`. A name comes before a number, so that the class called `10` is
        meant by "10". Raise `ConfigError` that names the candidates when several classes are meant, and the nearest
        when none is.
        """
        names, wanted = self.classes, str(name).strip().casefold()
        if not isinstance(name, str):
            wanted, meant = str(name), []
        else:
            meant = [number for number, full in enumerate(names) if full.casefold() == wanted]
            synonyms = ([word.strip() for word in full.casefold().split(",")] for full in names)
            meant = meant or [number for number, words in enumerate(synonyms) if wanted in words]
        if len(meant) == 1:
            return meant[0]
        if meant:
            candidates = " or ".join(f"{number} ({names[number]})" for number in meant)
            raise ConfigError(f"{name!r} is the name of {len(meant)} classes: say {candidates}.", setting="class")
        if wanted.isdecimal() and int(wanted) < len(names):
            return int(wanted)
        words = [word.strip() for full in names for word in full.split(",")]
        hint = (
            nearest(str(name), words, every="`softvq sample --list-classes`")
            if names
            else "; the model knows no classes."
        )
        raise ConfigError(f"there is no class {name!r}{hint}", setting="class")

    def _chosen(self, classes: Any) -> tuple[int, ...]:
        """Return the numbers of the requested classes: one or several, as names, numbers, an array or a tensor."""
        if classes is None:
            return ()
        given = classes.tolist() if hasattr(classes, "tolist") else classes
        given = [given] if isinstance(given, str | int | float) else list(given)
        if not given:
            raise ConfigError("classes is empty; leave it out for all classes.", setting="class")
        return tuple(self.class_number(one) for one in given)

    @property
    def sampling(self) -> Sampling:
        """The model's own settings: those that its recipe has stored with it, else those of its kind."""
        if "sampling" in self.generator.about:
            return from_dict(Sampling, self.generator.about["sampling"], "about.sampling")
        return self.generator.default_sampling

    def request(
        self,
        classes: Classes = None,
        num: int | None = None,
        *,
        seed: int = 0,
        steps: int | None = None,
        guidance: float | None = None,
        interval: tuple[float, float] | None = None,
        sampler: str | None = None,
        labels: Literal["balanced", "random"] = "balanced",
        batch_size: int = 64,
        precision: Literal["auto", "float32", "bfloat16"] = "auto",
        sampling: Sampling | None = None,
    ) -> Request:
        """Return a request for images, checked; raise `ConfigError` when it cannot be met.

        `classes` are names or numbers, taken in turn; without any, all classes (see `labels`). `num` is the number of
        images; by default one for each class given, else 16. `guidance` is the scale, 1 for none; `interval` has the
        times in which there is guidance, 0 data … 1 noise. Settings that are left out are as in `sampling`, by default
        the model's own.
        """
        chosen = self._chosen(classes)
        num = (len(chosen) or 16) if num is None else num
        for setting, value in (("num", num), ("batch_size", batch_size), ("steps", 1 if steps is None else steps)):
            check_whole(setting, value, 1)
        check_whole("seed", seed)
        if not 0 <= seed < 2**63:
            raise ConfigError(f"seed must not be negative and be below 2^63, not {seed}.", setting="seed")
        if labels not in ("balanced", "random"):
            raise ConfigError(f"labels must be 'balanced' or 'random', not {labels!r}.", setting="labels")
        base = sampling or self.sampling
        try:
            own = base.guidance if guidance is None else base.guidance.scaled(guidance)
            own = own if interval is None else replace(own, interval=tuple(interval))
            own = own if self.generator.classes else Guidance()
            steps = base.steps if steps is None else steps
            whole = replace(base, sampler=sampler or base.sampler, steps=steps, guidance=own)
        except ConfigError:
            raise
        except (ValueError, TypeError) as error:
            raise ConfigError(f"{error}.") from None
        try:
            self.generator.check(whole)
        except ConfigError as error:
            raise ConfigError(str(error), setting="sampler") from None
        return Request(
            num, seed, chosen, labels, whole, batch_size, pick_precision(precision, self.device, training=False)
        )

    def _asked(self, classes: Classes, num: int | None, settings: dict[str, Any]) -> Request:
        valid = [name for name in inspect.signature(self.request).parameters if name not in ("classes", "num")]
        if unknown := [name for name in settings if name not in valid]:
            raise ConfigError(f"there is no setting {unknown[0]!r}{nearest(unknown[0], [*valid, 'progress'])}")
        return self.request(classes, num, **settings)

    def __call__(
        self, classes: Classes = None, num: int | None = None, *, progress: Progress = None, **settings: Any
    ) -> list[Image.Image]:
        """Return new images as PIL images.

        The `settings` are seed, steps, guidance, interval, sampler, labels, batch_size and precision, as `request`
        explains them.
        """
        images = self.tensors(classes, num, progress=progress, **settings)
        return [Image.fromarray(pixels.permute(1, 2, 0).numpy()) for pixels in images]

    def tensors(
        self, classes: Classes = None, num: int | None = None, *, progress: Progress = None, **settings: Any
    ) -> UInt8[Tensor, "N 3 H W"]:
        """Return new images as an 8-bit tensor on the CPU; `request` explains all settings."""
        request = self._asked(classes, num, settings)
        return torch.cat([self.images(request, numbers, progress) for numbers in _batches(request, range(request.num))])

    def latents(
        self, classes: Classes = None, num: int | None = None, *, progress: Progress = None, **settings: Any
    ) -> Float[Tensor, "N T C"]:
        """Return the latents of new images, float32 on the CPU; `request` explains all settings."""
        request = self._asked(classes, num, settings)
        latents = [self._latents(request, numbers, progress).cpu() for numbers in _batches(request, range(request.num))]
        return torch.cat(latents)

    def labels(self, request: Request, numbers: Iterable[int]) -> list[int]:
        """Return the class of each image by its number."""
        classes = max(1, self.generator.classes)
        if request.classes:
            return [request.classes[n % len(request.classes)] for n in numbers]
        if request.labels == "random":
            return [int(rng(request.seed, Stream.SAMPLE_CLASS, n).integers(classes)) for n in numbers]
        return [n % classes for n in numbers]

    @torch.no_grad()
    def images(self, request: Request, numbers: Sequence[int], progress: Progress = False) -> UInt8[Tensor, "B 3 H W"]:
        """Return the images of these numbers as one batch, 8-bit on the CPU."""
        with autocast(self.device, request.precision):
            return to_bytes(self.tokenizer.decode(self._latents(request, numbers, progress))).cpu()

    @torch.no_grad()
    def _latents(self, request: Request, numbers: Sequence[int], progress: Progress) -> Tensor:
        labels = torch.tensor(self.labels(request, numbers), device=self.device)
        noise = Noise(request.seed, numbers, self.generator.shape)
        through = _bar(progress, f"images {numbers[0] + 1} to {numbers[-1] + 1}")
        with autocast(self.device, request.precision):
            latents = self.generator.sample(labels, noise, request.sampling, through)
        return check_finite(latents, "the generator's latents")

    def settings(self, request: Request) -> dict[str, Any]:
        """Return all that the images are a function of, JSON-ready."""
        guidance = request.sampling.guidance
        return {
            "model": self.name,
            "generator": self.generator.fingerprint,
            "tokenizer": self.tokenizer.fingerprint,
            "seed": request.seed,
            "classes": list(request.classes) or request.labels,
            "sampler": request.sampling.sampler,
            "steps": request.sampling.steps,
            "guidance": guidance.scale,
            "interval": list(guidance.interval),
            "schedule": guidance.schedule,
            "state": request.sampling.dtype,
            "precision": request.precision,
            **recorded_plugins(self.generator.config),
        }

    def write_picture(
        self,
        path: str | Path,
        classes: Classes = None,
        num: int | None = None,
        *,
        progress: Progress = None,
        **settings: Any,
    ) -> Path:
        """Write new images as one picture, and the settings and labels beside it as JSON; return its path.

        The settings are those of `request`. With several processes the first one writes.
        """
        request, path = self._asked(classes, num, settings), Path(path)
        if request.num > _MOST_SHOWN:
            raise ConfigError(
                f"a picture holds at most {_MOST_SHOWN:,} images; write them as an array or as single pictures.",
                setting="npz",
            )
        format_of(path)
        files.check_writable(path)
        if distributed.rank() > 0:
            return path
        images = torch.cat([self.images(request, n, progress) for n in _batches(request, range(request.num))])
        labels = self.labels(request, range(request.num))
        save_picture(class_grid(enlarge(images), self.class_names(labels)), path)
        files.write_json(path.with_suffix(".json"), {**self._told(request), "labels": labels})
        return path

    def class_names(self, labels: Iterable[int]) -> list[str]:
        """Return the name of each label, empty where the generator knows no classes."""
        names = self.classes
        return [names[label] if names else "" for label in labels]

    def _told(self, request: Request) -> dict[str, Any]:
        """Return the record written beside images: the settings, and the versions of the software."""
        return {**self.settings(request), "softvq": __version__, "torch": torch.__version__}

    def write_images(
        self,
        folder: str | Path,
        classes: Classes = None,
        num: int | None = None,
        *,
        progress: Progress = None,
        **settings: Any,
    ) -> Path:
        """Write new images as single PNG files, `000012-flags.png` by number and class; return the folder.

        The settings are written beside them as `settings.json`; they are those of `request`. Each process writes its
        share, and a stopped call goes on where it was. Raise `DataError` when the folder has images of other settings.
        """
        request, folder = self._asked(classes, num, settings), Path(folder)
        files.check_writable(folder, folder=True)
        with distributed.locked(folder):
            return self._write_images(request, folder, progress)

    def _write_images(self, request: Request, folder: Path, progress: Progress) -> Path:
        record, beside = self._told(request), folder / "settings.json"
        if beside.is_file() and not _is_same(beside, record):
            raise DataError(f"{folder} holds images of other settings; use another folder.", setting="out")
        labels = self.labels(request, range(request.num))
        stems = [f"{number:06d}{_slug(name)}" for number, name in enumerate(self.class_names(labels))]
        distributed.barrier()
        if distributed.rank() == 0:
            files.write_json(beside, {**record, "labels": labels})

        def missing(first: int) -> Path:  # a part is whole when none of its files is missing
            own = [folder / f"{stem}.png" for stem in stems[first : first + PART]]
            return next((path for path in own if not path.is_file()), own[-1])

        def make(numbers: range, done: Callable[[int], object]) -> None:
            for batch in _batches(request, numbers):
                for number, pixels in zip(batch, self.images(request, batch), strict=True):
                    save_picture(Image.fromarray(pixels.permute(1, 2, 0).numpy()), folder / f"{stems[number]}.png")
                done(len(batch))

        distributed.in_parts(request.num, PART, missing, make, "sampling", show=_show(progress))
        return folder

    def write_npz(
        self,
        path: str | Path,
        classes: Classes = None,
        num: int | None = None,
        *,
        progress: Progress = None,
        **settings: Any,
    ) -> Path:
        """Write new images as `arr_0` (N, H, W, 3) and their labels as `arr_1`, and the settings beside it as JSON.

        Parts are written as they are made, each process its share, and a stopped call goes on where it was. Raise
        `DataError` when the file, or parts of it, are there with other settings.
        """
        request, path = self._asked(classes, num, settings), Path(path)
        if path.suffix.lower() != ".npz":
            raise ConfigError(f"{path}: an array is written as .npz.", setting="npz")
        side = self.image_size
        files.check_writable(path, 2 * 3 * request.num * side * side)  # its parts, and then the whole
        parts, full_settings = path.with_name(path.name + ".parts"), self.settings(request)
        if path.exists():
            if _is_array_of(path, full_settings, request.num):
                return path
            raise DataError(f"{path} is there already, with other settings; remove it, or use another.", setting="npz")
        with distributed.locked(parts, "npz"):
            return self._write_npz(request, path, parts, progress)

    def _write_npz(self, request: Request, path: Path, parts: Path, progress: Progress) -> Path:
        begun, wanted = parts / "settings.json", {**self.settings(request), "count": request.num}
        if begun.is_file() and files.read_json(begun) != json.loads(json.dumps(wanted)):
            raise DataError(
                f"{parts} holds part of an array with other settings; remove it, or use another file.", setting="npz"
            )
        distributed.barrier()
        if distributed.rank() == 0:
            files.write_json(begun, wanted)

        def part(first: int) -> Path:
            return parts / f"{first:08d}.npy"

        def make(numbers: range, done: Callable[[int], object]) -> None:
            images = torch.cat([self.images(request, batch) for batch in _batches(request, numbers)])
            with files.atomic(part(numbers.start)) as temporary, temporary.open("wb") as file:
                np.save(file, images.permute(0, 2, 3, 1).contiguous().numpy())
            done(len(numbers))

        distributed.in_parts(request.num, PART, part, make, "sampling", show=_show(progress))
        if distributed.rank() == 0:
            arrays = [np.load(part(first), mmap_mode="r") for first in range(0, request.num, PART)]
            shape = (request.num, *arrays[0].shape[1:3])
            write_arrays(path, shape, arrays, arr_1=np.array(self.labels(request, range(request.num))))
            files.write_json(path.with_suffix(".json"), self._told(request))
            shutil.rmtree(parts)
        distributed.barrier()
        return path


def _is_array_of(path: Path, settings: dict[str, Any], count: int) -> bool:
    """Return True when an array that is there was made with these settings, and is as long."""
    beside = path.with_suffix(".json")
    return beside.is_file() and _is_same(beside, settings) and ArrayFile(path).shape[0] == count


def _is_same(beside: Path, record: dict[str, Any]) -> bool:
    """Return True when the settings in a file are these, whatever version of the software wrote them."""
    before, now = (
        {**one, **_VERSIONS, "labels": None} for one in (files.read_json(beside), json.loads(json.dumps(record)))
    )
    return before == now


def _slug(name: str) -> str:
    """Return a class's name as the end of a file's name: letters, digits and hyphens."""
    short = re.sub(r"[^\w]+", "-", name.split(",")[0]).strip("-")
    return f"-{short[:60]}" if short else ""


def _batches(request: Request, numbers: range) -> Iterable[range]:
    for first in range(numbers.start, numbers.stop, request.batch_size):
        yield range(first, min(numbers.stop, first + request.batch_size))


def _bar(progress: Progress, title: str) -> Callable[[Sequence], Iterable] | None:
    """Return the function that the steps of a batch go through, which shows progress."""
    if callable(progress):
        return progress
    return lambda steps: progresses.through(steps, "step", title, show=progress, kept=False)


def _show(progress: Progress) -> bool | None:
    """Return True when there is to be a bar where no steps are seen, otherwise the setting itself."""
    return True if callable(progress) else progress
