"""Look at a tokenizer's latent space: UMAP of ẑ and z (Fig. 4), codebook usage and distances, channel statistics.

  softvq latents                                                  the bundled tokenizer on the bundled images
  softvq latents --model SoftVQVAE/softvq-l-64 --data imagenet/val --classes 20 --num 5000

ẑ is what the encoder gives, z what the decoder gets. Each point is an image: all its tokens, beside each other. Writes
pictures and a JSON file into --out. Needs pip install 'softvq[plots]'.
"""

import argparse
from pathlib import Path
from typing import Any

from softvq.cli.main import Failure, Usage
from softvq.cli.options import add_model_option


def configure(parser: argparse.ArgumentParser) -> None:
    add_model_option(parser)
    add = parser.add_argument
    add("--data", default="emoji", help="images (default: emoji)")
    add("-n", "--num", type=int, default=2000, help="how many images, evenly over them (default: 2000)")
    add("--classes", type=int, default=20, help="of the first so many classes (default: 20)")
    add("--batch", type=int, default=64, help="images at a time (default: 64)")
    add("--workers", type=int, default=2, help="processes that decode images (default: 2)")
    add("--seed", type=int, default=0, help="of UMAP")
    add("--out", type=Path, help="the folder to write (default: evaluations/latents-MODEL)")


def run(options: argparse.Namespace) -> dict[str, Any]:
    from softvq import files
    from softvq.cli.evaluating import EVALUATION
    from softvq.evaluation.latent_space import change, channel_statistics, codebook_scores, nearest_cosines, umap_learn
    from softvq.figures import pyplot

    if min(options.num, options.classes, options.batch) < 1 or options.workers < 0:
        raise Usage("--num, --classes and --batch must be at least 1, --workers not negative")
    pyplot()  # what is missing is said before the work begins
    umap_learn()
    options.out = options.out or Path("evaluations") / f"latents-{Path(options.model).name}"
    seen = _Seen(options)
    result: dict[str, Any] = {
        "softvq": EVALUATION,
        "kind": "latents",
        "model": {"name": str(options.model), "fingerprint": seen.tokenizer.fingerprint},
        "protocol": {"data": options.data, "images": len(seen.labels), "seed": options.seed},
        "scores": {},
        "pictures": [],
    }
    statistics = channel_statistics(seen.latents)
    result["channels"] = {name: values.tolist() for name, values in statistics.items()}
    result["pictures"].append(_draw_channels(statistics, options.out / "channels.png"))
    if seen.encoded is not None and seen.encoded.shape == seen.latents.shape:
        result["scores"] = change(seen.encoded, seen.latents)
    if seen.counts is not None:
        nearest = [nearest_cosines(codebook) for codebook in seen.codebooks]
        result["scores"] |= codebook_scores(seen.counts, seen.entropy)
        result["scores"]["nearest_cosine"] = sum(float(one.mean()) for one in nearest) / len(nearest)
        result["pictures"].append(_draw_codebooks(seen.counts, nearest, options.out / "codebooks.png"))
    result["pictures"].append(_draw_umap(seen, options))
    files.write_json(options.out / "latents.json", result)
    if not options.json:
        for name, value in result["scores"].items():
            print(f"{name:24} {value:10.4f}")
        print("\n".join(result["pictures"]))
    return result


class _Seen:
    """ẑ, z, labels and codeword counts of the images that are looked at."""

    def __init__(self, options: argparse.Namespace):
        import torch
        from tqdm import tqdm

        from softvq.cli.representing import CodebookCounts
        from softvq.data.loader import listing, ordered_batches
        from softvq.pipeline import load_tokenizer
        from softvq.runtime import autocast, pick_device, pick_precision

        device = pick_device(options.device)
        precision = pick_precision(options.precision, device, training=False)
        self.tokenizer = load_tokenizer(options.model).to(device)
        source = listing(options.data)
        among = [n for n, label in enumerate(source.labels) if label < options.classes]
        if not among:
            raise Failure(f"{options.data} holds no images of its first {options.classes} classes.")
        chosen = sorted({among[round(i * (len(among) - 1) / max(1, options.num - 1))] for i in range(options.num)})
        self.classes = source.classes
        quantizer = getattr(self.tokenizer, "quantizer", None)  # diffusers' have none
        counts = CodebookCounts(quantizer)
        encoded, latents, labels = [], [], []
        batches = ordered_batches(
            source,
            size=self.tokenizer.config.image_size,
            batch_size=options.batch,
            chosen=chosen,
            workers=options.workers,
        )
        with torch.no_grad(), tqdm(total=len(chosen), unit="image", dynamic_ncols=True) as bar:
            for batch in batches:
                with autocast(device, precision):
                    found = self.tokenizer(batch.images.to(device))
                encoded.append(found.encoded.float().cpu())
                latents.append(found.quantized.latent.float().cpu())
                labels.append(batch.labels)
                bar.update(len(batch))
        self.encoded, self.latents, self.labels = torch.cat(encoded), torch.cat(latents), torch.cat(labels)
        told = counts.tensors()
        self.counts = told["counts"][0] if told else None
        self.entropy = told["entropy"][0] if told else None
        leaves = [] if quantizer is None else quantizer.leaves
        self.codebooks = [one.codebook for one in leaves if hasattr(one, "codebook")]


def _draw_channels(statistics: dict[str, Any], path: Path) -> str:
    from softvq.figures import pyplot, save_figure

    figure, axes = pyplot().subplots(figsize=(7, 3), layout="constrained")
    axes.errorbar(range(len(statistics["mean"])), statistics["mean"], statistics["std"], fmt="o", capsize=2)
    axes.axhline(0, color="grey", linewidth=0.5)
    axes.set(xlabel="channel of z", ylabel="mean ± deviation")
    save_figure(figure, path)
    return str(path)


def _draw_codebooks(counts: Any, nearest: list[Any], path: Path) -> str:
    from softvq.figures import pyplot, save_figure

    figure, (usage, distances) = pyplot().subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    for number, (row, cosines) in enumerate(zip(counts, nearest, strict=True)):
        share = row.sort(descending=True).values.double() / row.sum()
        usage.plot(range(1, len(share) + 1), share, label=f"codebook {number + 1}")
        distances.hist(cosines, bins=50, histtype="step")
    usage.axhline(1 / counts.shape[1], color="grey", linewidth=0.5)
    usage.set(xscale="log", xlabel="codeword, by how often it is the likeliest", ylabel="share of tokens")
    distances.set(xlabel="cosine with the nearest other codeword", ylabel="codewords")
    usage.legend(fontsize=7)
    save_figure(figure, path)
    return str(path)


def _draw_umap(seen: _Seen, options: argparse.Namespace) -> str:
    from softvq.evaluation.latent_space import umap
    from softvq.figures import pyplot, save_figure

    panels = {"z: what the decoder gets": seen.latents}
    if seen.encoded is not None:
        panels = {"ẑ: what the encoder gives": seen.encoded, **panels}
    figure, axes = pyplot().subplots(
        1, len(panels), figsize=(5 * len(panels), 4.4), layout="constrained", squeeze=False
    )
    colours = pyplot().get_cmap("tab20")
    for axis, (title, latents) in zip(axes[0], panels.items(), strict=True):
        places = umap(latents.flatten(1), options.seed)
        for label in seen.labels.unique().tolist():
            chosen = seen.labels == label
            name = seen.classes[label] if label < len(seen.classes) else str(label)
            axis.scatter(*places[chosen].T, s=4, color=colours(label % 20), label=name[:24])
        axis.set(title=title, xticks=[], yticks=[])
    axes[0][-1].legend(fontsize=6, markerscale=2, loc="center left", bbox_to_anchor=(1, 0.5))
    path = options.out / "umap.png"
    save_figure(figure, path)
    return str(path)
