"""PCA and box-downsampling on the bundled images, at the sizes and numbers of floats that tokenizers use.

    python benchmarks/yardsticks.py            # prints the table, writes softvq/assets/yardsticks.json

PCA is fitted on the training images. Images are fitted by ADM's centre crop, as for the tokenizers they stand beside.
"""

import argparse
from functools import partial
from pathlib import Path

import torch
from record import record
from tqdm import tqdm

from softvq.data.loader import ordered_batches
from softvq.data.opening import open_source
from softvq.evaluation.baselines import downsample_reconstruct, pca_reconstruct, principal_components
from softvq.evaluation.reconstruction import score
from softvq.figures import table

DEFAULT_OUT = Path(__file__).parent.parent / "softvq" / "assets" / "yardsticks.json"


def load(data: str, size: int, how: str) -> torch.Tensor:
    """Return all images of a set at one size, in [-1, 1]."""
    batches = ordered_batches(open_source(data), size=size, batch_size=64, how=how)
    return torch.cat([batch.images for batch in tqdm(batches, desc=f"{data} {size}", unit="batch")])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--floats", type=int, nargs="+", default=[512, 1024, 2048])
    parser.add_argument("--fit", default="crop", choices=("crop", "resize"), help="resize is Lanczos")
    parser.add_argument("--data", default="emoji", help="images to fit PCA on (default: %(default)s)")
    parser.add_argument("--val", default="emoji-val", help="images to measure on (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT)
    options = parser.parse_args()
    rows = []
    for size in options.sizes:
        train, val = (load(data, size, options.fit) for data in (options.data, options.val))
        mean, basis = principal_components(train, max(options.floats))
        for floats in options.floats:
            methods = {
                "PCA": partial(pca_reconstruct, mean=mean, basis=basis[:, :floats]),
                "box-downsampling": partial(downsample_reconstruct, floats=floats),
            }
            for name, reconstruct in methods.items():
                means = score(reconstruct, val.split(64)).summary()
                rows.append({"method": name, "size": size, "floats": floats, **means})
    cells = [(r["method"], f"{r['size']}", f"{r['floats']}", f"{r['psnr']:.2f}", f"{r['ssim']:.4f}") for r in rows]
    print(table([("", "px", "numbers", "PSNR dB", "SSIM"), *cells]))
    record(options.out, rows, data=options.val, fit=options.fit)


if __name__ == "__main__":
    main()
