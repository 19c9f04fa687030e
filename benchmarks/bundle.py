"""Put a finished run into the package: its model in float16, with the figures that were measured of it.

    softvq train tokenizer emoji-64
    python benchmarks/bundle.py runs/emoji-64 softvq-emoji-64
    python benchmarks/bundle.py runs/emoji-sit emoji-sit          # after benchmarks/generators.py runs/emoji-sit

A tokenizer is measured again as it is stored, and gets its log and a model card; a generator gets the figures that
generators.py wrote. Refuses a model of more than 15 MB.
"""

import argparse
import json
from pathlib import Path

import torch
from record import RESULTS

from softvq import Generator, Tokenizer, hub
from softvq.data.loader import ordered_batches
from softvq.data.opening import open_source
from softvq.evaluation.demonstration import yardsticks
from softvq.evaluation.metrics import CONVENTION
from softvq.evaluation.reconstruction import score
from softvq.figures import table
from softvq.models import open_model
from softvq.training.hooks import Validation

LIMIT = 15_000_000
MEASURED = ("images", "balanced_accuracy", "nearest", "frechet")

CARD = """# {name}

A SoftVQ tokenizer for {size}×{size} images of emoji: {tokens} tokens × {dim} numbers = {floats} numbers an image,
{parameters:.2f}M parameters, stored in float16. It was trained on the {train} images of `{trained_on}` and knows
nothing else.

    {command}
    python benchmarks/bundle.py RUN {name}

Precision {precision}, {steps} steps of {batch}; recipe in `config.json`, loss and validation of every 100th step in
`log.jsonl`. Starting values and optimizer (`init: {init}`, {optimizer}) are not the paper's: benchmarks/README.md. Loss
terms and their weights: {weights}.

On the {images} images of `{data}` ({convention}):

{rows}

One image in a hundred of them is below {floor:.1f} dB (`psnr_floor`). `softvq reconstruct` names images that look
unlike nearly all of them (`domain_limits` in `config.json`; how often it errs: benchmarks/README.md).
"""


def bundle_tokenizer(tokenizer: Tokenizer, run: Path, name: str, val: str, folder: Path) -> str:
    """Measure a tokenizer, store it with its log and card, and return the card."""
    for tensor in tokenizer.state_dict().values():
        tensor.copy_(tensor.to(torch.float16))  # measure what is stored
    recipe, config = tokenizer.about["recipe"], tokenizer.config
    held_out, trained_on = open_source(val), open_source(recipe["data"])
    tokenizer.about.update(Validation(held_out, val).figures(tokenizer))
    figures = tokenizer.about["figures"]
    first = ordered_batches(trained_on, size=config.image_size, batch_size=32, chosen=range(len(held_out.names)))
    train = score(lambda images: tokenizer(images).images, (batch.images for batch in first)).summary()
    figures["train_psnr"] = train["psnr"]
    tokenizer.save_pretrained(folder, torch.float16)
    lines = (run / "log.jsonl").read_text().splitlines()
    (folder / "log.jsonl").write_text("".join(f"{one}\n" for one in lines if json.loads(one)["step"] % 100 == 0))
    floats = config.tokens * config.latent_dim
    rows = [{"method": name, **figures}, *yardsticks(config.image_size, floats)]
    rows.append({"method": f"the first {figures['images']} training images", **train})
    cells = [f"| {row['method']} | {row['psnr']:.2f} | {row['ssim']:.4f} |" for row in rows]
    card = CARD.format(
        name=name,
        size=config.image_size,
        tokens=config.tokens,
        dim=config.latent_dim,
        floats=floats,
        parameters=sum(p.numel() for p in tokenizer.parameters()) / 1e6,
        train=len(trained_on.names),
        trained_on=recipe["data"],
        command=tokenizer.about["command"],
        precision=tokenizer.about["precision"],
        steps=recipe["steps"],
        batch=recipe["batch_size"],
        init=recipe["init"],
        optimizer=recipe["optimizer"]["type"],
        weights=", ".join(f"{term} {weight:g}" for term, weight in recipe["weights"].items()),
        rows="\n".join(["| | PSNR dB | SSIM |", "|---|---|---|", *cells]),
        floor=figures["psnr_floor"],
        convention=CONVENTION,
        images=figures["images"],
        data=figures["data"],
    )
    (folder / "README.md").write_text(card, encoding="utf-8")
    return card


def bundle_generator(generator: Generator, run: str, results: Path, folder: Path) -> str:
    """Store a generator with the figures that generators.py wrote of it; return them as a table."""
    told = json.loads(results.read_text(encoding="utf-8"))
    own, real = ({name: told["rows"][row][name] for name in MEASURED} for row in (run, "validation images"))
    generator.about["figures"] = {
        **own,
        **{f"validation_{name}": value for name, value in real.items()},
        "command": told["command"],
    }
    generator.save_pretrained(folder, torch.float16)
    return table([("", *MEASURED), ("the generator", *map(_text, own.values())), ("real", *map(_text, real.values()))])


def _text(value: float) -> str:
    return f"{value:g}" if isinstance(value, int) else f"{value:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the run's folder; a generator's as it was given to generators.py")
    parser.add_argument("name", help="the bundled model's name")
    parser.add_argument("--val", default="emoji-val", help="images to measure a tokenizer on (default: %(default)s)")
    parser.add_argument("--results", type=Path, default=RESULTS / "generators.json", help="what generators.py wrote")
    parser.add_argument("--into", type=Path, default=hub.BUNDLED, help="where the model's folder goes")
    options = parser.parse_args()
    folder, model = options.into / options.name, open_model(str(options.run))
    if isinstance(model, Tokenizer):
        print(bundle_tokenizer(model, options.run, options.name, options.val, folder))
    else:
        print(bundle_generator(model, str(options.run), options.results, folder))
    if (size := (folder / hub.WEIGHTS).stat().st_size) > LIMIT:
        raise SystemExit(f"{folder / hub.WEIGHTS} has {size} bytes, more than {LIMIT}: remove it.")


if __name__ == "__main__":
    main()
