"""Do generated emoji look like the class asked for, and are they new?

    pip install 'softvq[lite]' scikit-learn
    softvq encode emoji --out latents && softvq train generator emoji-sit --data latents     (emoji-dit, emoji-mar)
    python benchmarks/generators.py runs/emoji-sit runs/emoji-dit runs/emoji-mar

Every model draws the same number of images of each class, with the same seed. All figures are in one feature space:
what EfficientNet-Lite0 (ImageNet weights) says of an image at 128 px, averaged over places, after its last block (320
numbers): the features of `softvq evaluate` on the bundled images.

- balanced accuracy: multinomial logistic regression with balanced class weights, fitted on the 3,094 training images
  and their mirrors, of the class asked for; beside its balanced accuracy on the 280 validation images.
- nearest: the median over images of the distance to the nearest training image (or its mirror), beside the validation
  images' own.
- Fréchet distance to the training images, beside the validation images' own, and that of their reconstructions, which
  no generator on these latents can be expected to beat.
"""

import argparse
import json
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from record import RESULTS, record
from torch import Tensor

from softvq.data.images import to_bytes
from softvq.data.loader import ordered_batches
from softvq.data.opening import open_source
from softvq.evaluation.distribution import nearest_distances
from softvq.evaluation.frechet import frechet_distance, moments_of
from softvq.figures import class_grid, enlarge, save_picture, table
from softvq.pipeline import Pipeline, Request
from softvq.pretrained.features import FeatureNetwork


def features(images: Tensor, net: FeatureNetwork) -> Tensor:
    """Return the features (B, 320) of images in [-1, 1]."""
    return torch.cat([net(to_bytes(part))["pool"] for part in images.split(64)])


def read(data: str) -> tuple[Tensor, Tensor]:
    """Return the images (N, 3, 64, 64) in [-1, 1] of a data set, and their labels."""
    batches = list(ordered_batches(open_source(data), size=64, batch_size=128))
    return torch.cat([b.images for b in batches]), torch.cat([b.labels for b in batches])


def balanced(classifier, vectors: Tensor, labels: Tensor) -> float:
    """Return the accuracy of a classifier, averaged over classes."""
    said = torch.from_numpy(classifier.predict(vectors.numpy()))
    return float(np.mean([float((said[labels == c] == c).float().mean()) for c in labels.unique()]))


def scores_of(classifier, vectors: Tensor, labels: Tensor, train: Tensor) -> dict[str, float]:
    """Return the figures of images by their features (N, 320), beside those of the training images."""
    return {
        "images": len(vectors),
        "balanced_accuracy": balanced(classifier, vectors, labels),
        "nearest": float(nearest_distances(vectors, train).median()),
        "frechet": frechet_distance(moments_of(vectors), moments_of(train)),
    }


def request_of(model: str, words: list[str]) -> tuple[Pipeline, Request]:
    """Return the pipeline of a model, and what is asked of it with settings such as `guidance=2`."""
    settings = {}
    for word in words:
        name, _, value = word.partition("=")
        with suppress(ValueError):
            value = json.loads(value)
        settings[name] = value
    pipeline = Pipeline.from_pretrained(model, device="auto")
    return pipeline, pipeline.request(**settings)


def main() -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="folders or names; MODEL:guidance=2:steps=20… for other settings")
    parser.add_argument("--each", type=int, default=40, help="images a class (default: 40)")
    parser.add_argument("--data", default="emoji", help="the training images, by class (default: %(default)s)")
    parser.add_argument("--val", default="emoji-val", help="the validation images (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=RESULTS / "generators.json")
    options = parser.parse_args()
    net = FeatureNetwork.load("efficientnet-lite0")
    train, labels = read(options.data)
    val, val_labels = read(options.val)
    known = torch.cat([features(train, net), features(train.flip(-1), net)])
    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, class_weight="balanced", max_iter=2000))
    classifier.fit(known.numpy(), labels.repeat(2).numpy())
    held = features(val, net)
    rows = {"validation images": scores_of(classifier, held, val_labels, known)}
    tokenizer = request_of(options.models[0].split(":")[0], [])[0].tokenizer
    with torch.no_grad():
        again = torch.cat([tokenizer(part).images.clamp(-1, 1) for part in val.split(70)])
    rows["their reconstructions"] = scores_of(classifier, features(again, net), val_labels, known)
    for model in options.models:
        name, *words = model.split(":")
        pipeline, request = request_of(name, words)
        count = options.each * pipeline.generator.classes
        numbers, began = list(range(count)), time.monotonic()
        images = torch.cat([pipeline.images(request, numbers[at : at + 60]) for at in range(0, count, 60)])
        seconds = time.monotonic() - began
        vectors = features(images.float() / 127.5 - 1, net)
        wanted = torch.tensor(pipeline.labels(request, numbers))
        recipe = pipeline.generator.about.get("recipe", {})
        rows[model] = {
            "recipe": recipe.get("name"),
            "steps": recipe.get("steps"),
            "parameters": sum(p.numel() for p in pipeline.generator.parameters()),
            "sampling": {k: v for k, v in pipeline.settings(request).items() if k not in ("model", "tokenizer")},
            "seconds_an_image": seconds / count,
            **scores_of(classifier, vectors, wanted, known),
        }
        shown = images[: 8 * pipeline.generator.classes]
        classes = pipeline.class_names(pipeline.labels(request, range(len(shown))))
        stem = recipe.get("name") or Path(name).name
        save_picture(class_grid(enlarge(shown), classes), options.out.with_name(f"{stem}.png"))
    names = ("balanced_accuracy", "nearest", "frechet")
    cells = [(name, *(f"{row[one]:.3f}" for one in names)) for name, row in rows.items()]
    print(table([("", *names), *cells]))
    record(options.out, rows)


if __name__ == "__main__":
    main()
