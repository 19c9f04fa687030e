"""softvq sample."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from softvq.cli.options import BUNDLED_GENERATOR, BatchSize, Interval, Machine, Num, Outcome, Usage, Whole, option
from softvq.errors import counted

_NUM, _FEW = 16, 16  # images by default; classes that each get as many
Labels = Literal["balanced", "random"]


@Parameter(name="*")
@dataclass(frozen=True)
class Sampling:
    """The generator, and how images are drawn from it."""

    model: Annotated[str, option("A generator: a folder, a bundled model or a hub name.")] = BUNDLED_GENERATOR
    tokenizer: Annotated[str | None, option("The tokenizer (default: the one it was trained with).")] = None
    classes: Annotated[tuple[str, ...], option("By name or number; may be repeated.", name="--class")] = ()
    labels: Annotated[Labels, option("Without --class: all classes in turn, or random ones.")] = "balanced"
    sampler: Annotated[str | None, option("euler, heun, dopri5, sde, dpm, dpm-sde, ddpm, ddim, mar.")] = None
    steps: Annotated[int | None, Whole, option("Steps of the sampler (default: the model's own).")] = None
    no_ema: Annotated[bool, option("Of a run's folder: the trained weights instead of their average.")] = False

    def pipeline(self, common: Machine) -> Any:
        """Return the generator with its tokenizer, on this process's device."""
        from softvq import distributed
        from softvq.pipeline import Pipeline
        from softvq.runtime import pick_device

        device = distributed.start(pick_device(common.device))
        return Pipeline.from_pretrained(self.model, tokenizer=self.tokenizer, device=device, average=not self.no_ema)

    def settings(self, common: Machine) -> dict[str, Any]:
        """Return what is asked of the pipeline, but for the number of images, the seed and the guidance."""
        return {
            "classes": self.classes or None,
            "steps": self.steps,
            "sampler": self.sampler,
            "labels": self.labels,
            "precision": common.precision,
        }


def sample(
    *,
    sampling: Sampling = Sampling(),
    guidance: Annotated[float | None, option("Guidance scale; 1 is none (default: the model's own).")] = None,
    interval: Annotated[Interval | None, option("LOW HIGH: guide in these times, 0 data … 1 noise.")] = None,
    num: Annotated[int | None, Num, option("How many images (default: 16, or an equal number a class).")] = None,
    seed: Annotated[int, Whole, option("An image is a function of the seed and its number.")] = 0,
    batch_size: BatchSize = 64,
    out: Annotated[Path | None, option("A .png, .jpg or .webp; with --separate a folder.")] = None,
    separate: Annotated[bool, option("Write single PNG files into the folder --out (default: samples).")] = False,
    npz: Annotated[Path | None, option("Write an array of all images here instead of a picture.")] = None,
    list_classes: Annotated[bool, option("Print the model's classes and stop.")] = False,
    common: Machine = Machine(),
) -> Outcome:
    """Make new images with a generator and the tokenizer whose latents it knows.

    ```
    softvq sample
    softvq sample --class smileys-emotion --class food-drink -n 16 --guidance 2
    softvq sample --list-classes
    softvq sample --num 100 --separate --out faces --class smileys-emotion
    softvq sample --model runs/mine --num 50000 --npz samples.npz
    softvq sample --model SoftVQVAE/sit-xl_softvq-l-64 --class "golden retriever" --steps 50
    ```

    Writes a picture with a row a class and, beside it, the seed and all settings as JSON; or single files; or the array
    that ADM's evaluator reads. Batch size and number of processes change an 8-bit pixel by at most 1. Files and arrays
    are written as they are made; the same command goes on where a stopped one was, and torchrun shares the work out.
    """
    if npz is not None and (separate or out is not None):
        raise Usage("--npz is written instead of a picture or single files; leave --out and --separate out.")
    pipeline = sampling.pipeline(common)
    if list_classes:
        rows = [f"{number:4}  {name}" for number, name in enumerate(pipeline.classes)]
        return Outcome({"classes": pipeline.classes}, "\n".join(rows) or f"{sampling.model} knows no classes")
    asked = sampling.settings(common) | {"guidance": guidance, "interval": interval, "batch_size": batch_size}
    asked |= {"num": _balanced(len(sampling.classes), len(pipeline.classes)) if num is None else num, "seed": seed}
    if npz is not None:
        path, beside = pipeline.write_npz(npz, **asked), npz.with_suffix(".json")
    elif separate:
        path = pipeline.write_images(out or Path("samples"), **asked)
        beside = path / "settings.json"
    else:
        path = pipeline.write_picture(out or Path("samples.png"), **asked)
        beside = path.with_suffix(".json")
    from softvq import distributed
    from softvq.files import read_json

    record = read_json(beside) if distributed.rank() == 0 else {}
    settings = {key: value for key, value in record.items() if key != "labels"}
    return Outcome({"images": str(path), **settings}, f"{counted(asked['num'], 'image')} in {path}")


def _balanced(chosen: int, classes: int) -> int:
    """Return how many images are made by default: 16, or as many more as give each of few classes the same number."""
    several = chosen or (classes if classes <= _FEW else 0)
    return _NUM if not several else -(-_NUM // several) * several
