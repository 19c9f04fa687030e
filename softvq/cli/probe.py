"""Linear probing: how much of an image's class do latents, or a generator's features, hold? (Fig. 3, Appendix C.3)

  softvq probe                                                    the bundled tokenizer on the bundled images
  softvq probe --model SoftVQVAE/softvq-l-64 --data imagenet/train --val imagenet/val
  softvq probe --model SoftVQVAE/sit-xl_softvq-l-64 --layer 20 --data latents/ --val val_latents/

Images, or what softvq encode made of them. A batch norm without parameters and a linear layer, 90 epochs, LAMB, cosine
from 0.003, batches of 16,384 (less of a small set: an epoch has as many steps as ImageNet's); no augmentation and no
decay. Latents are read as they are, token beside token (--pool mean averages the tokens); features of a SiT or DiT
after --layer blocks are averaged over tokens, for latents noised to --time, without a class. k-NN (20 neighbours,
cosine) is told beside it; --quick tells it alone.
"""

import argparse
from pathlib import Path
from typing import Any

from softvq.cli.main import Failure, Usage
from softvq.cli.options import BUNDLED_TOKENIZER


def configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", default=BUNDLED_TOKENIZER, help=f"a tokenizer, SiT or DiT (default: {BUNDLED_TOKENIZER})")
    add("--tokenizer", help="of a generator: its tokenizer (default: the one that it was trained with)")
    add("--data", default="emoji", help="training images or latents (default: emoji)")
    add("--val", default="emoji-val", help="validation images or latents (default: emoji-val)")
    add("--layer", type=int, help="of a generator: after how many blocks (default: 20, or 5/7 of a smaller one's)")
    add("--time", type=float, default=0.5, help="of a generator: how noisy, 0 data … 1 noise (default: 0.5)")
    add("--pool", choices=("flatten", "mean"), help="of tokens (default: flatten for latents, mean for a generator)")
    add("--epochs", type=int, default=90, help="default: 90")
    add("--probe-batch", type=int, help="images a step of the probe (default: 16384, less of a small set)")
    add("--lr", type=float, default=0.003, help="default: 0.003")
    add("--seed", type=int, default=0)
    add("--quick", action="store_true", help="k-NN alone")
    add("--batch", type=int, default=64, help="images at a time through the model (default: 64)")
    add("--workers", type=int, default=2, help="processes that decode images (default: 2)")
    add("--out", type=Path, default=Path("evaluations"), help="the folder of results (default: evaluations)")


def run(options: argparse.Namespace) -> dict[str, Any]:
    from tqdm import tqdm

    from softvq import distributed
    from softvq.cli.evaluating import write_result
    from softvq.cli.representing import open_side, represented
    from softvq.evaluation.probe import Labelled, ProbeConfig, linear_probe, nearest_neighbours

    if options.batch < 1 or options.workers < 0 or not 0 <= options.time <= 1:
        raise Usage("--batch must be at least 1, --workers not negative, --time in [0, 1]")
    try:
        config = ProbeConfig(options.epochs, options.probe_batch, options.lr, options.seed)
    except ValueError as error:
        raise Usage(f"{error}") from None
    probed = _Probed(options)
    sides = [open_side(data, probed.tokenizer, options) for data in (options.data, options.val)]
    classes = [side.classes for side in sides]
    if classes[0] != classes[1]:
        raise Failure(f"{options.data} and {options.val} have other classes ({len(classes[0])} and {len(classes[1])}).")
    stem = f"probe-{Path(options.model).name}-{probed.stem([(s.identity, s.encoded) for s in sides], options)}"
    labelled = []
    for side, name in zip(sides, ("train", "val"), strict=True):
        parts = represented(
            side, probed.vectors(side.encoded), options.out / stem / name, probed.device, probed.precision
        )
        if (features := parts.all("features")) is None:
            parts.remove()  # the next command looks again
            raise Failure(f"none of the {side.count} images of {side.name} can be read.")
        labelled.append(Labelled(features, parts.all("labels")))
    train, val = labelled
    scores = nearest_neighbours(train, val, len(classes[0]))
    if not options.quick:
        bar = lambda epochs: tqdm(epochs, desc="probe", unit="epoch", disable=distributed.rank() > 0)  # noqa: E731
        on = [Labelled(side.features.to(probed.device), side.labels.to(probed.device)) for side in labelled]
        scores = {**linear_probe(*on, len(classes[0]), config, bar), **scores}
    result = {
        "model": probed.description,
        "protocol": {
            **{"data": options.data, "val": options.val, "images": len(train), "val_images": len(val)},
            **{"classes": len(classes[0]), "width": train.features.shape[1], "pool": probed.pool},
            **({} if options.quick else {"epochs": config.epochs, "batch": config.batch_of(len(train))}),
            **({} if options.quick else {"lr": config.lr, "seed": config.seed, "optimizer": "LAMB"}),
            **({"layer": options.layer, "time": options.time} if probed.generator else {}),
            "precision": probed.precision,
        },
        "scores": scores,
    }
    result = write_result(options.out, stem, "probe", result, options.out / stem)
    if distributed.rank() > 0:
        options.json = False
    elif not options.json:
        for name, value in scores.items():
            print(f"{name:16} {100 * value:6.2f} %")
        print(result["file"])
    distributed.stop()
    return result


class _Probed:
    """A tokenizer's latents, or a generator's features of them."""

    def __init__(self, options: argparse.Namespace):
        from softvq import distributed
        from softvq.pipeline import open_model, tokenizer_of
        from softvq.runtime import pick_device, pick_precision

        self.options = options
        self.device = distributed.start(pick_device(options.device))
        self.precision = pick_precision(options.precision, self.device, training=False)
        model = open_model(options.model)
        self.generator = model if model.kind == "generator" else None
        if self.generator is None:
            self.tokenizer = model.to(self.device)
        else:
            self._check_generator()
            self.tokenizer = tokenizer_of(self.generator, options.model, options.tokenizer).to(self.device)
            self.generator.to(self.device)
        self.pool = options.pool or ("flatten" if self.generator is None else "mean")

    def _check_generator(self) -> None:
        if not hasattr(self.generator, "features"):
            raise Usage(f"{self.options.model} is a {type(self.generator).__name__}; a SiT or DiT is probed")
        depth = len(self.generator.blocks)
        if self.options.layer is None:
            self.options.layer = 20 if depth > 20 else max(1, round(depth * 5 / 7))
        if not 1 <= self.options.layer <= depth:
            raise Usage(f"--layer {self.options.layer}: {self.options.model} has layers 1 to {depth}")

    @property
    def description(self) -> dict[str, Any]:
        model = self.generator or self.tokenizer
        recipe = model.about.get("recipe", {}).get("name")
        return {"name": str(self.options.model), "fingerprint": model.fingerprint, "recipe": recipe}

    def stem(self, data: Any, options: argparse.Namespace) -> str:
        from softvq.cli.evaluating import short_name

        settings = (options.epochs, options.probe_batch, options.lr, options.seed, options.quick)
        models = (self.description, self.tokenizer.fingerprint, self.precision)
        return short_name(*models, data, self.pool, options.layer, options.time, settings)

    def vectors(self, encoded: bool):
        """Images or latents, and their numbers → a vector each."""
        import torch

        from softvq.generators.base import Noise

        def represent(inputs, numbers):
            tokens = inputs if encoded else self.tokenizer.encode(inputs)
            if self.generator is not None:
                noise = Noise(self.options.seed, numbers, self.generator.shape)().to(self.device, torch.float32)
                tokens = self.generator.features(tokens.float(), noise, self.options.time, self.options.layer)
            return {"features": tokens.flatten(1) if self.pool == "flatten" else tokens.mean(1)}

        return represent
