"""A generator, its tokenizer and its settings, ready to make images by number; a picture or an array of them."""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from softvq import distributed, files, hub
from softvq.cli.hooks import save_picture
from softvq.cli.main import Failure, Usage
from softvq.cli.models import tokenizer_of
from softvq.config import from_dict, nearest
from softvq.data.arrays import write_arrays
from softvq.data.images import to_bytes
from softvq.evaluation.pictures import enlarge, grid
from softvq.generators.all import load_generator
from softvq.generators.base import Generator, Noise, Sampling
from softvq.randomness import Stream, rng
from softvq.runtime import autocast, pick_device, pick_precision
from softvq.training.state import Checkpoints
from softvq.transports.guidance import Guidance

_PART = 512  # images of a part of an unfinished array


class Sampler:
    """Images by number, as the command's options say."""

    def __init__(self, options: argparse.Namespace):
        self.device = distributed.start(pick_device(options.device))
        self.precision = pick_precision(options.precision, self.device, training=False)
        self.generator = _generator(options)
        self.tokenizer = tokenizer_of(self.generator, options.model, options.tokenizer).to(self.device)
        self.generator.to(self.device)
        self.seed, self.model, self.labels_by = options.seed, options.model, options.labels
        self.chosen = [class_number(name, self.generator) for name in options.classes or []]
        self.sampling = _sampling(options, self.generator)
        try:
            self.generator.check(self.sampling)
        except ValueError as error:
            raise Usage(f"--sampler {self.sampling.sampler}: {error}") from None

    def labels(self, numbers: list[int]) -> list[int]:
        """Each image's class: those asked for in turn, else all in turn, or random by seed and number."""
        classes = max(1, self.generator.classes)
        if self.chosen:
            return [self.chosen[n % len(self.chosen)] for n in numbers]
        if self.labels_by == "random":
            return [int(rng(self.seed, Stream.SAMPLE_CLASS, n).integers(classes)) for n in numbers]
        return [n % classes for n in numbers]

    @torch.no_grad()
    def images(self, numbers: list[int], progress: Any = None) -> Tensor:
        """Those images, 8-bit (B, 3, H, W)."""
        labels = torch.tensor(self.labels(numbers), device=self.device)
        noise = Noise(self.seed, numbers, self.generator.shape)
        with autocast(self.device, self.precision):
            latents = self.generator.sample(labels, noise, self.sampling, progress)
            return to_bytes(self.tokenizer.decode(latents)).cpu()

    def settings(self) -> dict[str, Any]:
        """All that the images are a function of."""
        guidance = self.sampling.guidance
        return {
            "model": str(self.model),
            "tokenizer": self.tokenizer.fingerprint,
            "seed": self.seed,
            "classes": self.chosen or self.labels_by,
            "sampler": self.sampling.sampler,
            "steps": self.sampling.steps,
            "guidance": guidance.scale,
            "interval": list(guidance.interval),
            "schedule": guidance.schedule,
            "state": self.sampling.dtype,
            "precision": self.precision,
        }


def class_names(generator: Generator) -> list[str]:
    """The names of a generator's classes: stored with it, or ImageNet's for one of 1,000."""
    names = generator.about.get("classes")
    if names and generator.classes:
        return list(names)
    if generator.classes == 1000:
        path = hub.BUNDLED.parent / "imagenet" / "classes.json"
        return json.loads(path.read_text(encoding="utf-8"))
    return [str(number) for number in range(generator.classes)]


def class_number(name: str, generator: Generator) -> int:
    """A class by number, by name, or by one of the words of its name (`tench` of `tench, Tinca tinca`)."""
    names = class_names(generator)
    if name.isdecimal() and int(name) < generator.classes:
        return int(name)
    wanted = name.casefold()
    for number, full in enumerate(names):
        if wanted == full.casefold() or wanted in [word.strip() for word in full.casefold().split(",")]:
            return number
    words = [word.strip() for full in names for word in full.split(",")]
    hint = nearest(name, words) if generator.classes else "; the model knows no classes"
    raise Usage(f"--class {name!r}: there is no such class{hint}")


def _generator(options: argparse.Namespace) -> Generator:
    generator = load_generator(options.model)
    if options.no_ema:
        found = Checkpoints(Path(options.model) / "checkpoints").all()
        if not found:
            raise Usage(f"--no-ema: {options.model} is no run's folder with checkpoints")
        generator.load_state_dict(files.read_tensors(found[-1] / "model.safetensors"))
    return generator.eval()


def _sampling(options: argparse.Namespace, generator: Generator) -> Sampling:
    """The options over the model's own settings over the defaults."""
    from dataclasses import replace

    base = generator.default_sampling
    if "sampling" in generator.about:
        base = from_dict(Sampling, generator.about["sampling"], "about.sampling")
    scale = base.guidance.scale if options.guidance is None else options.guidance
    try:
        guidance = replace(base.guidance, scale=scale, interval=tuple(options.interval or base.guidance.interval))
        steps = base.steps if options.steps is None else options.steps
        guidance = guidance if generator.classes else Guidance()
        return replace(base, sampler=options.sampler or base.sampler, steps=steps, guidance=guidance)
    except ValueError as error:
        raise Usage(f"{error}") from None


def write_picture(sampler: Sampler, count: int, batch: int, path: Path, settings: dict[str, Any]) -> Path:
    """All images as a grid, and the settings beside it."""
    if count > 1024:
        raise Usage("a picture holds at most 1,024 images; write an array with --npz")
    if distributed.rank() > 0:
        return path
    found = []
    for first in range(0, count, batch):
        numbers = list(range(first, min(count, first + batch)))
        with tqdm(total=0, desc=f"images {first + 1} to {numbers[-1] + 1}", unit="step", leave=False) as bar:
            found.append(sampler.images(numbers, lambda steps, bar=bar: _counted(steps, bar)))
    images = torch.cat(found)
    rows = max(1, round(count**0.5))
    save_picture(grid([enlarge(images)], ("",), rows=rows), path)
    labels = sampler.labels(list(range(count)))
    files.write_json(path.with_suffix(".json"), {**settings, "labels": labels})
    return path


def _counted(steps: Any, bar: Any):
    bar.reset(total=len(steps))
    for step in steps:
        yield step
        bar.update()


def write_npz(sampler: Sampler, count: int, batch: int, path: Path, settings: dict[str, Any]) -> Path:
    """All images as `arr_0` (N, H, W, 3) and their labels as `arr_1`, in parts that each rank writes its share of and
    that a stopped command does not make again."""
    parts = path.with_name(path.name + ".parts")
    parts.mkdir(parents=True, exist_ok=True)
    told, wanted = parts / "settings.json", {**settings, "count": count}
    if told.is_file() and files.read_json(told) != json.loads(json.dumps(wanted)):
        raise Failure(f"{parts} holds part of an array with other settings; remove it, or use another --npz.")
    distributed.barrier()
    if distributed.rank() == 0:
        files.write_json(told, wanted)
    firsts = list(range(0, count, _PART))
    mine = firsts[distributed.rank() :: distributed.world_size()]
    with tqdm(total=len(mine) * _PART, unit="image", disable=distributed.rank() > 0, dynamic_ncols=True) as bar:
        for first in mine:
            target, last = parts / f"{first:08d}.npy", min(count, first + _PART)
            if not target.is_file():
                chunks = [sampler.images(list(range(at, min(last, at + batch)))) for at in range(first, last, batch)]
                with files.atomic(target) as temporary, temporary.open("wb") as file:
                    np.save(file, torch.cat(chunks).permute(0, 2, 3, 1).contiguous().numpy())
            bar.update(last - first)
    distributed.barrier()
    if distributed.rank() == 0:
        arrays = [np.load(parts / f"{first:08d}.npy", mmap_mode="r") for first in firsts]
        shape = (count, *arrays[0].shape[1:3])
        write_arrays(path, shape, arrays, arr_1=np.array(sampler.labels(list(range(count)))))
        files.write_json(path.with_suffix(".json"), settings)
        shutil.rmtree(parts)
    distributed.barrier()
    return path
