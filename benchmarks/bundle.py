"""Put a finished run into the package: its model in float16, measured again as stored, with its log and a model card.

    softvq train tokenizer emoji-64
    python benchmarks/bundle.py runs/emoji-64 softvq-emoji-64

Refuses a model of more than 15 MB.
"""

import argparse
import json
from pathlib import Path

import torch

from softvq import Tokenizer, hub
from softvq.data.loader import ordered_batches
from softvq.data.opening import open_source
from softvq.evaluation.comparison import yardsticks
from softvq.evaluation.reconstruction import score
from softvq.training.hooks import Validation

LIMIT = 15_000_000

CARD = """# {name}

A SoftVQ tokenizer for {size}×{size} images of emoji: {tokens} tokens × {dim} numbers = {floats} floats an image,
{parameters:.2f}M parameters, stored in float16. It was trained on the {train} bundled emoji and knows nothing else.

    {command}
    python benchmarks/bundle.py RUN {name}

Precision {precision}, {steps} steps of {batch}; recipe in `config.json`, loss and validation of
every 100th step in `log.jsonl`.
Starting values and optimizer (`init: {init}`, {optimizer}) are not the paper's: benchmarks/README.md. The losses are
reconstruction (pixels) and KL alone.

On the {images} validation images of `{data}` ({convention}):

| | PSNR dB | SSIM |
|---|---|---|
| {name} | {psnr:.2f} | {ssim:.4f} |
{rows}
| the first {images} training images | {train_psnr:.2f} | {train_ssim:.4f} |

One image in a hundred of the validation set is below {floor:.1f} dB (`psnr_floor`): `softvq reconstruct` warns there.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the run's folder")
    parser.add_argument("name", help="the bundled model's name")
    parser.add_argument("--val", default="emoji-val", help="images to measure on (default: %(default)s)")
    parser.add_argument("--into", type=Path, default=hub.BUNDLED, help="where the model's folder goes")
    options = parser.parse_args()
    folder = options.into / options.name
    tokenizer = Tokenizer.from_pretrained(options.run / "model")
    for tensor in tokenizer.state_dict().values():
        tensor.copy_(tensor.to(torch.float16))  # measure what is stored
    recipe = tokenizer.about["recipe"]
    held_out, trained_on = open_source(options.val), open_source("emoji")
    tokenizer.about.update(Validation(held_out, options.val).figures(tokenizer))
    batches = ordered_batches(
        trained_on, size=tokenizer.config.image_size, batch_size=32, chosen=range(len(held_out.names))
    )
    train = score(lambda images: tokenizer(images).images, (batch.images for batch in batches)).summary()
    tokenizer.about["figures"]["train_psnr"] = train["psnr"]
    tokenizer.save_pretrained(folder, torch.float16)
    size = (folder / hub.WEIGHTS).stat().st_size
    if size > LIMIT:
        raise SystemExit(f"{folder / hub.WEIGHTS} has {size} bytes, more than {LIMIT}.")
    lines = (options.run / "log.jsonl").read_text().splitlines()
    kept = [line for line in lines if json.loads(line)["step"] % 100 == 0]
    (folder / "log.jsonl").write_text("".join(line + "\n" for line in kept))
    config = tokenizer.config
    others = yardsticks(config.image_size, config.tokens * config.latent_dim)
    figures = tokenizer.about["figures"]
    card = CARD.format(
        name=options.name,
        size=config.image_size,
        tokens=config.tokens,
        dim=config.latent_dim,
        floats=config.tokens * config.latent_dim,
        parameters=sum(p.numel() for p in tokenizer.parameters()) / 1e6,
        train=len(trained_on.names),
        command=tokenizer.about["command"],
        precision=tokenizer.about["precision"],
        steps=recipe["steps"],
        batch=recipe["batch_size"],
        init=recipe["init"],
        optimizer=recipe["optimizer"]["type"],
        rows="\n".join(f"| {row['method']} | {row['psnr']:.2f} | {row['ssim']:.4f} |" for row in others),
        train_psnr=train["psnr"],
        train_ssim=train["ssim"],
        floor=figures["psnr_floor"],
        **{key: figures[key] for key in ("images", "data", "convention", "psnr", "ssim")},
    )
    (folder / "README.md").write_text(card, encoding="utf-8")
    print(card)


if __name__ == "__main__":
    main()
