"""Every figure that the paper prints of its models, as data to stand beside measured ones.

The keys are names of recipes, and for the figures of generated images pairs of a name and the steps trained (MAR's 500
epochs are 312,500).
"""

from typing import NamedTuple


class Row(NamedTuple):
    """The figures of generated images, 50,000 of ImageNet's classes; None where the paper prints none."""

    gfid: float
    inception_score: float
    precision: float | None
    recall: float | None


class TokenizerRow(NamedTuple):
    """A tokenizer's row of Tables 1 to 5 or 7, and its rFID (ImageNet validation, 50,000 images)."""

    table: str
    row: str
    rfid: float


class GeneratorRow(NamedTuple):
    """A generator's row, the number of steps it was trained for, and its guidance: scale and interval of time."""

    table: str
    row: str
    steps: int
    scale: float
    interval: tuple[float, float]


class CostRow(NamedTuple):
    """A row of Tables 1 and 2: Gflops of an evaluation as the paper counts, and images a second.

    The latter are those on one AMD MI250, in float32 with batches of 64.
    """

    table: str
    about: str
    gmacs: float
    images_per_second: float


TOKENIZERS: dict[str, TokenizerRow] = {
    "softvq-b-32": TokenizerRow("1", "SoftVQ-B", 0.89),
    "softvq-bl-32": TokenizerRow("1", "SoftVQ-BL", 0.68),
    "softvq-l-32": TokenizerRow("1", "SoftVQ-L", 0.74),
    "softvq-b-64": TokenizerRow("1", "SoftVQ-B", 0.88),
    "softvq-bl-64": TokenizerRow("1", "SoftVQ-BL", 0.65),
    "softvq-l-64": TokenizerRow("1", "SoftVQ-L", 0.61),
    "softvq-bl-64-512": TokenizerRow("2", "SoftVQ-BL", 0.71),
    "softvq-l-32-512": TokenizerRow("7", "SoftVQ-L", 0.64),
    "vq-s-256": TokenizerRow("3", "VQ-S", 1.45),
    "vq-s-128": TokenizerRow("3", "VQ-S", 2.61),
    "vq-s-64": TokenizerRow("3", "VQ-S", 4.04),
    "vq-s-32": TokenizerRow("3", "VQ-S", 10.97),
    "ae-s-256": TokenizerRow("3", "AE-S", 1.15),
    "ae-s-128": TokenizerRow("3", "AE-S", 1.33),
    "ae-s-64": TokenizerRow("3", "AE-S", 1.64),
    "ae-s-32": TokenizerRow("3", "AE-S", 2.01),
    "softvq-s-256": TokenizerRow("3", "SoftVQ-S", 0.8),
    "softvq-s-128": TokenizerRow("3", "SoftVQ-S", 0.92),
    "softvq-s-64": TokenizerRow("3", "SoftVQ-S", 1.03),
    "softvq-s-32": TokenizerRow("3", "SoftVQ-S", 1.24),
    "softvq-b-64-none-none": TokenizerRow("4", "SoftVQ-B, encoder and target none-none", 0.98),
    "softvq-b-64-none-dinov2": TokenizerRow("4", "SoftVQ-B, encoder and target none-dinov2", 0.93),
    "softvq-b-64-dinov2-none": TokenizerRow("4", "SoftVQ-B, encoder and target dinov2-none", 0.73),
    "softvq-b-64-clip-clip": TokenizerRow("4", "SoftVQ-B, encoder and target clip-clip", 0.75),
    "softvq-b-64-eva02-eva02": TokenizerRow("4", "SoftVQ-B, encoder and target eva02-eva02", 0.81),
    "softvq-s-64-plain": TokenizerRow("5", "SoftVQ-S", 1.33),
    "softvq-s-64-pq2": TokenizerRow("5", "SoftVQ-S + PQ (G=2)", 1.19),
    "softvq-s-64-rq": TokenizerRow("5", "SoftVQ-S + RQ", 1.55),
    "softvq-s-64-rpq": TokenizerRow("5", "SoftVQ-S + R-PQ (G=4)", 1.17),
    "gmmvq-s-64": TokenizerRow("5", "GMMVQ-S", 1.12),
    "softvq-s-64-k512": TokenizerRow("5", "SoftVQ-S, K = 512", 1.82),
    "softvq-s-64-k1024": TokenizerRow("5", "SoftVQ-S, K = 1024", 1.58),
    "softvq-s-64-k2048": TokenizerRow("5", "SoftVQ-S, K = 2048", 1.35),
    "softvq-s-64-k4096": TokenizerRow("5", "SoftVQ-S, K = 4096", 1.14),
    "softvq-s-64-k16384": TokenizerRow("5", "SoftVQ-S, K = 16384", 1.23),
    "softvq-s-64-tau0.001": TokenizerRow("5", "SoftVQ-S, τ = 0.001", 2.03),
    "softvq-s-64-tau0.01": TokenizerRow("5", "SoftVQ-S, τ = 0.01", 1.37),
    "softvq-s-64-tau0.1": TokenizerRow("5", "SoftVQ-S, τ = 0.1", 1.19),
    "softvq-s-64-tau1.0": TokenizerRow("5", "SoftVQ-S, τ = 1.0", 1.52),
    "softvq-s-64-tau-learned": TokenizerRow("5", "SoftVQ-S, τ learnable", 1.1),
    "softvq-s-64-d16": TokenizerRow("5", "SoftVQ-S, L/D = 64/16", 2.31),
    "softvq-s-64-d64": TokenizerRow("5", "SoftVQ-S, L/D = 64/64", 0.63),
    "softvq-s-32-d32": TokenizerRow("5", "SoftVQ-S, L/D = 32/32", 1.61),
    "softvq-s-32-d128": TokenizerRow("5", "SoftVQ-S, L/D = 32/128", 0.79),
}

GENERATORS: dict[str, GeneratorRow] = {
    "sit-xl-softvq-b-32": GeneratorRow("1", "SiT-XL, SoftVQ-B", 3_000_000, 2.25, (0.0, 0.7)),
    "dit-xl-softvq-b-32": GeneratorRow("1", "DiT-XL, SoftVQ-B", 3_000_000, 1.45, (0.0, 1.0)),
    "sit-xl-softvq-bl-32": GeneratorRow("1", "SiT-XL, SoftVQ-BL", 3_000_000, 2.25, (0.0, 0.7)),
    "dit-xl-softvq-bl-32": GeneratorRow("1", "DiT-XL, SoftVQ-BL", 3_000_000, 1.45, (0.0, 1.0)),
    "sit-xl-softvq-l-32": GeneratorRow("1", "SiT-XL, SoftVQ-L", 3_000_000, 2.25, (0.0, 0.7)),
    "dit-xl-softvq-l-32": GeneratorRow("1", "DiT-XL, SoftVQ-L", 3_000_000, 1.45, (0.0, 1.0)),
    "sit-xl-softvq-b-64": GeneratorRow("1", "SiT-XL, SoftVQ-B", 3_000_000, 1.75, (0.0, 0.7)),
    "dit-xl-softvq-b-64": GeneratorRow("1", "DiT-XL, SoftVQ-B", 3_000_000, 1.35, (0.0, 1.0)),
    "sit-xl-softvq-bl-64": GeneratorRow("1", "SiT-XL, SoftVQ-BL", 3_000_000, 1.75, (0.0, 0.7)),
    "dit-xl-softvq-bl-64": GeneratorRow("1", "DiT-XL, SoftVQ-BL", 3_000_000, 1.35, (0.0, 1.0)),
    "sit-xl-softvq-l-64": GeneratorRow("1", "SiT-XL, SoftVQ-L", 3_000_000, 1.75, (0.0, 0.7)),
    "dit-xl-softvq-l-64": GeneratorRow("1", "DiT-XL, SoftVQ-L", 3_000_000, 1.35, (0.0, 1.0)),
    "mar-h-softvq-l-32": GeneratorRow("1", "MAR-H, SoftVQ-L", 312_500, 3.0, (0.0, 1.0)),
    "mar-h-softvq-bl-64": GeneratorRow("1", "MAR-H, SoftVQ-BL", 312_500, 3.0, (0.0, 1.0)),
    "sit-xl-softvq-bl-64-512": GeneratorRow("2", "SiT-XL, SoftVQ-BL, 512 px", 3_000_000, 1.75, (0.0, 0.7)),
    "mar-h-softvq-bl-64-512": GeneratorRow("2", "MAR-H, SoftVQ-BL, 512 px", 312_500, 3.0, (0.0, 1.0)),
    "sit-xl-softvq-l-32-512": GeneratorRow("7", "SiT-XL, SoftVQ-L, 512 px", 3_000_000, 2.25, (0.0, 0.7)),
    "sit-l-vq-s-256": GeneratorRow("3", "SiT-L, VQ-S", 400_000, 1.0, (0.0, 1.0)),
    "sit-l-vq-s-128": GeneratorRow("3", "SiT-L, VQ-S", 400_000, 1.0, (0.0, 1.0)),
    "sit-l-vq-s-64": GeneratorRow("3", "SiT-L, VQ-S", 400_000, 1.0, (0.0, 1.0)),
    "sit-l-vq-s-32": GeneratorRow("3", "SiT-L, VQ-S", 400_000, 1.0, (0.0, 1.0)),
    "sit-l-ae-s-256": GeneratorRow("3", "SiT-L, AE-S", 400_000, 1.0, (0.0, 1.0)),
    "sit-l-ae-s-128": GeneratorRow("3", "SiT-L, AE-S", 400_000, 1.0, (0.0, 1.0)),
    "sit-l-ae-s-64": GeneratorRow("3", "SiT-L, AE-S", 400_000, 1.0, (0.0, 1.0)),
    "sit-l-ae-s-32": GeneratorRow("3", "SiT-L, AE-S", 400_000, 1.0, (0.0, 1.0)),
    "sit-l-softvq-s-256": GeneratorRow("3", "SiT-L, SoftVQ-S", 400_000, 1.0, (0.0, 1.0)),
    "sit-l-softvq-s-128": GeneratorRow("3", "SiT-L, SoftVQ-S", 400_000, 1.0, (0.0, 1.0)),
    "sit-l-softvq-s-64": GeneratorRow("3", "SiT-L, SoftVQ-S", 400_000, 1.0, (0.0, 1.0)),
    "sit-l-softvq-s-32": GeneratorRow("3", "SiT-L, SoftVQ-S", 400_000, 1.0, (0.0, 1.0)),
    "sit-l-softvq-b-64-none-none": GeneratorRow("4", "SiT-L, SoftVQ-B none-none", 400_000, 1.0, (0.0, 1.0)),
    "sit-l-softvq-b-64-none-dinov2": GeneratorRow("4", "SiT-L, SoftVQ-B none-dinov2", 400_000, 1.0, (0.0, 1.0)),
    "sit-l-softvq-b-64-dinov2-none": GeneratorRow("4", "SiT-L, SoftVQ-B dinov2-none", 400_000, 1.0, (0.0, 1.0)),
    "sit-l-softvq-b-64": GeneratorRow("4", "SiT-L, SoftVQ-B dinov2-dinov2", 400_000, 1.0, (0.0, 1.0)),
    "sit-l-softvq-b-64-clip-clip": GeneratorRow("4", "SiT-L, SoftVQ-B clip-clip", 400_000, 1.0, (0.0, 1.0)),
    "sit-l-softvq-b-64-eva02-eva02": GeneratorRow("4", "SiT-L, SoftVQ-B eva02-eva02", 400_000, 1.0, (0.0, 1.0)),
    "dit-xl-2-kl": GeneratorRow("1", "DiT-XL/2, KL, 1024 latents", 7_000_000, 1.5, (0.0, 1.0)),
    "sit-xl-2-kl": GeneratorRow("1", "SiT-XL/2, KL, 1024 latents", 7_000_000, 1.5, (0.0, 1.0)),
}

# Without guidance, and with
_GENERATION: dict[tuple[str, int], tuple[tuple | None, tuple | None]] = {
    # Table 6
    ("mar-h-softvq-l-32", 312_500): ((3.83, 211.2, 0.77, 0.61), (2.54, 273.6, 0.78, 0.61)),
    ("mar-h-softvq-bl-64", 312_500): ((2.81, 218.3, 0.78, 0.62), (1.93, 289.4, 0.80, 0.61)),
    ("dit-xl-2-kl", 7_000_000): ((9.62, 121.5, 0.67, 0.67), (2.27, 278.2, 0.83, 0.53)),
    ("sit-xl-2-kl", 7_000_000): ((8.30, 131.7, 0.68, 0.67), (2.06, 270.3, 0.82, 0.59)),
    ("dit-xl-softvq-b-32", 3_000_000): ((9.83, 113.8, 0.70, 0.61), (3.91, 264.2, 0.81, 0.54)),
    ("dit-xl-softvq-bl-32", 3_000_000): ((9.22, 115.8, 0.71, 0.61), (3.78, 266.7, 0.82, 0.54)),
    ("dit-xl-softvq-b-64", 3_000_000): ((6.62, 129.2, 0.75, 0.62), (3.29, 262.5, 0.84, 0.54)),
    ("dit-xl-softvq-bl-64", 3_000_000): ((6.53, 131.9, 0.75, 0.62), (3.11, 268.3, 0.84, 0.56)),
    ("sit-xl-softvq-b-32", 3_000_000): ((7.99, 129.3, 0.70, 0.63), (2.51, 301.3, 0.76, 0.62)),
    ("sit-xl-softvq-bl-32", 3_000_000): ((7.67, 133.9, 0.70, 0.63), (2.44, 308.8, 0.76, 0.63)),
    ("sit-xl-softvq-b-64", 3_000_000): ((5.98, 138.0, 0.74, 0.64), (1.78, 279.0, 0.80, 0.63)),
    ("sit-xl-softvq-bl-64", 3_000_000): ((5.80, 143.5, 0.74, 0.64), (1.88, 287.9, 0.80, 0.63)),
    # Table 7, 512 px
    ("mar-h-softvq-bl-64-512", 312_500): ((8.21, 152.9, 0.69, 0.59), (3.42, 261.8, 0.77, 0.61)),
    ("sit-xl-softvq-l-32-512", 3_000_000): ((10.17, 119.2, 0.65, 0.59), (4.23, 218.0, 0.83, 0.52)),
    ("sit-xl-softvq-bl-64-512", 3_000_000): ((7.96, 133.9, 0.73, 0.63), (2.21, 290.5, 0.85, 0.59)),
    # Table 8 (its 3M are Table 6's)
    ("dit-xl-softvq-l-32", 3_000_000): ((9.07, 117.2, 0.71, 0.61), (3.69, 270.4, 0.83, 0.53)),
    ("dit-xl-softvq-l-32", 4_000_000): ((8.54, 124.0, 0.72, 0.62), (3.58, 281.9, 0.82, 0.53)),
    ("dit-xl-softvq-l-64", 3_000_000): ((5.83, 141.3, 0.75, 0.62), (2.93, 268.5, 0.84, 0.55)),
    ("dit-xl-softvq-l-64", 4_000_000): ((5.60, 144.5, 0.76, 0.63), (2.84, 270.1, 0.85, 0.54)),
    ("sit-xl-softvq-l-32", 400_000): ((16.49, 79.1, 0.65, 0.61), (4.61, 281.2, 0.86, 0.47)),
    ("sit-xl-softvq-l-32", 1_000_000): ((10.30, 109.0, 0.69, 0.63), (2.85, 284.0, 0.76, 0.61)),
    ("sit-xl-softvq-l-32", 2_000_000): ((8.52, 122.8, 0.71, 0.64), (2.51, 296.3, 0.77, 0.63)),
    ("sit-xl-softvq-l-32", 3_000_000): ((7.59, 137.4, 0.71, 0.63), (2.44, 310.6, 0.77, 0.63)),
    ("sit-xl-softvq-l-32", 4_000_000): ((7.32, 138.6, 0.72, 0.63), (2.38, 311.5, 0.77, 0.63)),
    ("sit-xl-softvq-l-64", 400_000): ((10.03, 103.4, 0.71, 0.62), (3.12, 236.3, 0.77, 0.61)),
    ("sit-xl-softvq-l-64", 1_000_000): ((7.14, 125.4, 0.72, 0.64), (2.09, 254.9, 0.79, 0.62)),
    ("sit-xl-softvq-l-64", 2_000_000): ((5.88, 140.6, 0.73, 0.64), (1.89, 284.4, 0.80, 0.63)),
    ("sit-xl-softvq-l-64", 3_000_000): ((5.35, 151.2, 0.74, 0.64), (1.86, 293.6, 0.81, 0.63)),
    ("sit-xl-softvq-l-64", 4_000_000): ((5.21, 158.5, 0.75, 0.64), (1.79, 297.8, 0.81, 0.64)),
    # Tables 3 and 4: SiT-L, 400K steps, without guidance
    **{
        (f"sit-l-{name}", 400_000): ((gfid, score, None, None), None)
        for name, gfid, score in (
            ("vq-s-256", 19.02, 58.6),
            ("vq-s-128", 18.51, 62.4),
            ("vq-s-64", 20.07, 54.5),
            ("vq-s-32", 21.57, 47.6),
            ("ae-s-256", 22.11, 58.3),
            ("ae-s-128", 22.31, 58.5),
            ("ae-s-64", 25.53, 54.3),
            ("ae-s-32", 28.18, 45.5),
            ("softvq-s-256", 9.21, 93.6),
            ("softvq-s-128", 10.12, 85.8),
            ("softvq-s-64", 11.24, 89.4),
            ("softvq-s-32", 12.89, 79.5),
            ("softvq-b-64-none-none", 20.33, 89.4),
            ("softvq-b-64-none-dinov2", 10.96, 101.9),
            ("softvq-b-64-dinov2-none", 17.20, 91.5),
            ("softvq-b-64", 10.13, 103.4),
            ("softvq-b-64-clip-clip", 9.89, 109.3),
            ("softvq-b-64-eva02-eva02", 10.34, 112.7),
        )
    },
}
# (Recipe, steps) -> the row without guidance and the one with it.
GENERATION: dict[tuple[str, int], tuple[Row | None, Row | None]] = {
    key: (plain and Row(*plain), guided and Row(*guided)) for key, (plain, guided) in _GENERATION.items()
}

# Top-1 accuracy in per cent on ImageNet's validation images (Table 4)
PROBE: dict[str, float] = {
    "softvq-b-64-none-none": 5.42,
    "softvq-b-64-none-dinov2": 41.08,
    "softvq-b-64-dinov2-none": 11.87,
    "softvq-b-64": 42.42,
    "softvq-b-64-clip-clip": 47.12,
    "softvq-b-64-eva02-eva02": 44.23,
}

COSTS: dict[str, CostRow] = {
    "dit-xl-2-kl": CostRow("1", "DiT-XL/2, KL, 1024 latents", 80.73, 0.51),
    "sit-xl-2-kl": CostRow("1", "SiT-XL/2, KL, 1024 latents", 81.92, 0.54),
    "mar-h-kl": CostRow("1", "MAR-H, KL, 256 tokens", 145.08, 0.12),
    "mar-h-32": CostRow("1", "MAR-H, SoftVQ-L, 32 tokens", 67.93, 2.08),
    "mar-h-64": CostRow("1", "MAR-H, SoftVQ-BL, 64 tokens", 86.55, 0.89),
    "dit-xl-32": CostRow("1", "DiT-XL, SoftVQ-L, 32 tokens", 14.52, 8.74),
    "dit-xl-64": CostRow("1", "DiT-XL, SoftVQ-L, 64 tokens", 28.81, 4.51),
    "sit-xl-32": CostRow("1", "SiT-XL, SoftVQ-L, 32 tokens", 14.73, 10.11),
    "sit-xl-64": CostRow("1", "SiT-XL, SoftVQ-L, 64 tokens", 29.23, 5.39),
    "dit-xl-2-kl-512": CostRow("2", "DiT-XL/2, KL, 4096 latents", 373.34, 0.1),
    "sit-xl-2-kl-512": CostRow("2", "SiT-XL/2, KL, 4096 latents", 373.32, 0.1),
    "mar-h-64-512": CostRow("2", "MAR-H, SoftVQ-BL, 64 tokens", 86.55, 1.5),
    "sit-xl-64-512": CostRow("2", "SiT-XL, SoftVQ-BL, 64 tokens", 29.23, 5.38),
}
