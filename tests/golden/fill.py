"""Pseudo-random weights for a golden case: each tensor of its manifest is drawn from a generator seeded by its name.

python tests/golden/fill.py tests/golden/tokenizer-s-64/manifest.json model.safetensors
"""

import json
import sys
import zlib

import numpy as np
import torch


def filled_tensor(name: str, shape: list[int], dtype: str) -> torch.Tensor:
    """One tensor, a function of its name and shape alone."""
    if name.endswith("codebook_used"):  # usage statistics, not a weight
        return torch.zeros(shape)
    noise = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape).astype(np.float32)
    if name.endswith(("gamma", "norm.weight", "norm1.weight", "norm2.weight", "norm_pre.weight", "norm_final.weight")):
        values = 1.0 + 0.1 * noise
    elif name.endswith("quantize.embedding"):
        values = noise
    elif name.endswith(("token", "tokens", "pos_embed")):
        values = 0.5 * noise
    elif len(shape) >= 2:
        values = noise / np.sqrt(np.prod(shape[1:]))
    else:
        values = 0.1 * noise
    return torch.from_numpy(np.ascontiguousarray(values)).to(getattr(torch, dtype))


def filled_state_dict(manifest_path: str) -> dict[str, torch.Tensor]:
    with open(manifest_path) as f:
        manifest = json.load(f)
    return {name: filled_tensor(name, spec["shape"], spec["dtype"]) for name, spec in manifest.items()}


if __name__ == "__main__":
    from safetensors.torch import save_file

    save_file(filled_state_dict(sys.argv[1]), sys.argv[2])
