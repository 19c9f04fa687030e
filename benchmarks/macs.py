"""Multiply-accumulates of one evaluation of the paper's generators, beside the paper's GFLOPs, by kind of layer.

    python benchmarks/macs.py

Linear layers alone, which is what the paper's figures for DiT are; nothing is computed (meta device). For MAR: all
image tokens masked, the decoder once, the head once a token.
"""

import json
from pathlib import Path

import torch

from softvq.evaluation.cost import grouped, linear_macs
from softvq.generators.denoising import DiTConfig, SiTConfig
from softvq.generators.mar import MARConfig, MARNetworkConfig
from softvq.generators.transformer import TransformerConfig

PAPER = {  # Tables 1, 2: tokens, channels, GFLOPs as printed
    "DiT-XL 32": (32, 64, 14.52),
    "DiT-XL 64": (64, 32, 28.81),
    "SiT-XL 32": (32, 64, 14.73),
    "SiT-XL 64": (64, 32, 29.23),
    "MAR-H 32": (32, 64, 67.93),
    "MAR-H 64": (64, 32, 86.55),
}


def counted(name: str, tokens: int, channels: int) -> dict[str, int]:
    kind = name.split("-")[0]
    with torch.device("meta"):
        if kind == "MAR":
            model = MARConfig(MARNetworkConfig.named("H", tokens, channels, 1000)).build().eval()
            hidden = torch.ones(1, tokens, dtype=torch.bool)

            def call() -> None:
                network = model.config.network
                kept = torch.zeros(1, network.buffer, network.width)
                seen = model.decoder_embed(model._through(model.encoder, kept))
                model.token_embedder(torch.zeros(1, tokens, channels))
                rest = torch.zeros(1, tokens, network.width)
                z = model._through(model.decoder, torch.cat([seen, rest], 1))[0, network.buffer :]
                model.head(torch.zeros(hidden.numel(), channels), torch.zeros(hidden.numel()), z)
        else:
            network = TransformerConfig.named("XL", tokens, channels, 1000)
            model = (DiTConfig(network) if kind == "DiT" else SiTConfig(network)).build()

            def call() -> None:
                model.network(torch.zeros(1, tokens, channels), torch.zeros(1), torch.zeros(1, dtype=torch.long))

        return linear_macs(model, call)


def main() -> None:
    rows = {}
    for name, (tokens, channels, printed) in PAPER.items():
        counts = counted(name, tokens, channels)
        total = sum(counts.values()) / 1e9
        rows[name] = {
            "gmacs": round(total, 2),
            "paper": printed,
            "ratio": round(total / printed, 3),
            "by_layer": {k: round(v / 1e9, 3) for k, v in sorted(grouped(counts).items(), key=lambda item: -item[1])},
        }
        print(f"{name:10} {total:7.2f} G   paper {printed:6.2f}   ratio {total / printed:.3f}")
        for layer, share in rows[name]["by_layer"].items():
            print(f"    {layer:44} {share:8.3f}")
    (Path(__file__).parent / "results" / "macs.json").write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
