"""The cost of tokenizers and generators beside the paper's: multiply-accumulates, time and memory.

    result = cost(["sit-xl-64", "softvq-l-64"], timed=False)      # rows of Tables 1 to 3: see ROWS
    result = cost(models=["emoji-sit"])                           # models that are there

The protocol: random weights (cost does not depend on them); `batch_size` images at a time on one device; an image takes
`steps` evaluations of a SiT or DiT, with `guidance` each of a doubled batch; the time of an evaluation is the fastest
of `repeats` after one that warms up, and images/s = batch / (steps × evaluation + decoding). A MAR takes `steps`
unmasking steps (at most its tokens), each an evaluation with the mean number of known tokens, and 100 of its head a
token. Multiply-accumulates are those of linear and convolutional layers, one image, one evaluation, no guidance, as the
paper counts (its Gflops). Memory is what tensors hold at once in one evaluation, weights included.
"""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from softvq import progress
from softvq.autoencoders import FoldedAutoencoder
from softvq.config import nearest
from softvq.errors import ConfigError, check_number, check_whole
from softvq.evaluation.results import Result, short_name
from softvq.figures import table
from softvq.generators.base import Generator
from softvq.generators.dit import DiTConfig
from softvq.generators.mar import MARConfig, MARNetworkConfig
from softvq.generators.sit import SiTConfig
from softvq.generators.transformer import TransformerConfig
from softvq.memory import Memory, without_contents
from softvq.models import open_model, own_device, tokenizer_of
from softvq.published import COSTS
from softvq.runtime import autocast, pick_precision
from softvq.tokenizer import Tokenizer, TokenizerConfig

# The KL autoencoder of latent diffusion with 8 × 8 pixels a latent, and its size, as diffusers describes it
_KL = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "latent_channels": 4,
}


@dataclass(frozen=True)
class CostRow:
    """A generator and the tokenizer that decodes its latents (None: nothing is known of it), or a tokenizer alone."""

    table: str
    about: str
    generator: Callable[[], Generator] | None
    tokenizer: Callable[[], nn.Module] | None


def _transformer(kind: str, tokens: int, channels: int, positions: str = "1d") -> Callable[[], Generator]:
    config = SiTConfig if kind == "sit" else DiTConfig
    return lambda: config(TransformerConfig.named("XL", tokens, channels, 1000, positions)).build()


def _mar(tokens: int, channels: int) -> Callable[[], Generator]:
    return lambda: MARConfig(MARNetworkConfig.named("H", tokens, channels, 1000)).build()


def _softvq(size: str, tokens: int, image_size: int = 256) -> Callable[[], nn.Module]:
    config = TokenizerConfig.of_size(size, tokens=tokens, latent_dim=2048 // tokens, image_size=image_size)
    return lambda: Tokenizer(config)


def _kl(image_size: int) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        from diffusers import AutoencoderKL

        return FoldedAutoencoder.of(AutoencoderKL(**_KL), "AutoencoderKL", image_size, {})

    return build


def _rows() -> dict[str, CostRow]:
    """Return the rows of Tables 1 and 2, and the tokenizers."""
    made: dict[str, tuple[Callable[[], Generator], Callable[[], nn.Module] | None]] = {
        "mar-h-kl": (_mar(256, 16), None)
    }
    for kind in ("dit", "sit"):
        for size, tokens, ending in ((256, 256, ""), (512, 1024, "-512")):
            made[f"{kind}-xl-2-kl{ending}"] = (_transformer(kind, tokens, 16, "2d"), _kl(size))
        for tokens in (32, 64):
            made[f"{kind}-xl-{tokens}"] = (_transformer(kind, tokens, 2048 // tokens), _softvq("L", tokens))
    made |= {f"mar-h-{n}": (_mar(n, 2048 // n), _softvq(size, n)) for n, size in ((32, "L"), (64, "BL"))}
    made["mar-h-64-512"] = (_mar(64, 32), _softvq("BL", 64, 512))
    made["sit-xl-64-512"] = (_transformer("sit", 64, 32), _softvq("BL", 64, 512))
    rows = {name: CostRow(paper.table, paper.about, *made[name]) for name, paper in COSTS.items()}
    for size in ("S", "B", "BL", "L"):
        about = f"tokenizer SoftVQ-{size}, 64 tokens, 256 px"
        rows[f"softvq-{size.lower()}-64"] = CostRow("3", about, None, _softvq(size, 64))
    rows["softvq-bl-64-512"] = CostRow("2", "tokenizer SoftVQ-BL, 64 tokens, 512 px", None, _softvq("BL", 64, 512))
    rows["kl-f8"] = CostRow("3", "tokenizer KL, 32 × 32 × 4, 256 px (needs diffusers)", None, _kl(256))
    return rows


ROWS = _rows()


@dataclass(frozen=True)
class CostSettings:
    """The settings that cost is measured with: see the module's protocol.

    With `batch_size` None it is 64, on a CPU 1. Without `timed`, parameters and multiply-accumulates alone are
    measured.
    """

    steps: int = 50
    guidance: float = 1.75
    batch_size: int | None = None
    repeats: int = 3
    timed: bool = True
    device: str | torch.device | None = None
    precision: str = "auto"

    def __post_init__(self):
        for name, number in vars(self).items():
            if name in ("steps", "repeats", "batch_size") and number is not None:
                check_whole(name, number, 1)
        check_number("guidance", self.guidance, 0)


def cost(rows: Sequence[str] = (), *, models: Sequence[str] = (), **settings: Any) -> Result:
    """Return the cost of networks.

    They are those of `rows` by name (default: all of `ROWS`), or of `models` that exist, by name. `settings` are the
    fields of `CostSettings`.
    """
    given = CostSettings(**settings)
    if rows and models:
        raise ConfigError("rows or models are measured, not both at once.", setting="model")
    for name in rows:
        if name not in ROWS:
            raise ConfigError(f"there is no row {name!r}{nearest(name, list(ROWS))}")
    device = own_device(given.device)
    precision = pick_precision(given.precision, device, training=False)
    at = _Timing(device, precision, given.batch_size or (1 if device.type == "cpu" else 64), given)
    wanted = _rows_of(models) if models else {name: ROWS[name] for name in rows or ROWS}
    costs = {}
    for name in progress.through(list(wanted), "row", "measuring"):
        costs[name] = _measured(name, wanted[name], at)
    threads = f"{device.type}, {torch.get_num_threads()} threads"
    protocol = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else threads,
        **{"torch": torch.__version__, "precision": precision, "batch": at.batch_size},
        **{"steps": given.steps, "guidance": given.guidance, "repeats": given.repeats, "timed": given.timed},
    }
    return Result("cost", f"cost-{short_name(protocol, list(costs))}", {}, protocol, more={"rows": costs})


def _rows_of(names: Sequence[str]) -> dict[str, CostRow]:
    """Return the rows of models that exist."""
    rows = {}
    for name in names:
        model = open_model(name)
        if model.kind == "generator":
            tokenizer = tokenizer_of(model, name, None) if model.about.get("tokenizer") else None
            decoder = None if tokenizer is None else (lambda tokenizer=tokenizer: tokenizer)
            rows[name] = CostRow("–", name, lambda model=model: model, decoder)
        else:
            rows[name] = CostRow("–", name, None, lambda model=model: model)
    return rows


@dataclass(frozen=True)
class _Timing:
    """A stopwatch and its settings: the device, precision and batch that calls are timed with."""

    device: torch.device
    precision: str
    batch_size: int
    given: CostSettings

    def milliseconds(self, call: Callable[[], Any]) -> float:
        """Return the time of a call, an image."""
        with autocast(self.device, self.precision):
            return timed(call, self.device, self.given.repeats) * 1000 / self.batch_size

    def gigabytes(self, model: nn.Module, call: Callable[[], Any]) -> float:
        """Return the largest memory that tensors hold at once in a call."""
        with autocast(self.device, self.precision):
            return call_memory(model, call) / 1e9


def _measured(name: str, row: CostRow, at: _Timing) -> dict[str, Any]:
    """Return a row's figures; those that are not known are None."""
    paper = COSTS.get(name) if row is ROWS.get(name) else None
    figures: dict[str, Any] = {
        "table": row.table,
        "about": row.about,
        "published_gmacs": paper and paper.gmacs,
        "published_images_per_second": paper and paper.images_per_second,
    }
    figures |= _decoding(row, at)
    if row.generator is not None:
        figures |= _generating(row, at)
    if at.given.timed and figures.get("seconds") is not None:
        batch = at.batch_size
        figures["images_per_second"] = batch / (figures.pop("seconds") + (figures["decode_ms"] or 0) * batch / 1000)
    return figures


def _decoding(row: CostRow, at: _Timing) -> dict[str, Any]:
    figures: dict[str, Any] = {"decode_gmacs": None, "decode_ms": None}
    if row.tokenizer is None:
        return figures
    try:
        with without_contents():
            model = row.tokenizer().eval()
            images, latents = _inputs(model, 1)
            encode, decode = macs(model, lambda: model.encode(images)), macs(model, lambda: model.decode(latents))
    except ImportError:  # a row of diffusers, which is not installed
        return figures
    figures["decode_gmacs"] = sum(decode.values()) / 1e9
    if row.generator is None:
        figures |= {"parameters": _parameters(model), "gmacs": sum(encode.values()) / 1e9}
    if not at.given.timed:
        return figures
    model = row.tokenizer().to(at.device).eval()
    images, latents = (x.to(at.device) for x in _inputs(model, at.batch_size))
    figures["decode_ms"] = at.milliseconds(lambda: model.decode(latents))
    if row.generator is None:
        figures["evaluation_ms"] = at.milliseconds(lambda: model.encode(images))
        figures["memory_gb"] = at.gigabytes(model, lambda: model.decode(model.encode(images)))
        figures["images_per_second"] = 1000 / (figures["evaluation_ms"] + figures["decode_ms"])
    return figures


def _inputs(model: nn.Module, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    c = model.config
    return torch.zeros(count, 3, c.image_size, c.image_size), torch.zeros(count, c.tokens, c.latent_dim)


def _generating(row: CostRow, at: _Timing) -> dict[str, Any]:
    with without_contents():
        model = row.generator().eval()
        counts = macs(model, model.one_evaluation())
    figures: dict[str, Any] = {
        "parameters": _parameters(model),
        "gmacs": sum(counts.values()) / 1e9,
        "by_layer": {name: count / 1e9 for name, count in grouped(counts).items()},
    }
    if not at.given.timed:
        return figures
    model = row.generator().to(at.device).eval()
    parts = model.parts(at.batch_size, at.given.steps, at.given.guidance != 1)
    seconds = {name: at.milliseconds(part.call) * at.batch_size / 1000 for name, part in parts.items()}
    figures["memory_gb"] = at.gigabytes(model, parts["evaluation"].call)
    figures |= {f"{name}_ms": value * 1000 / at.batch_size for name, value in seconds.items()}
    figures["seconds"] = sum(part.times * seconds[name] for name, part in parts.items())
    return figures


def _parameters(model: nn.Module) -> float:
    return sum(p.numel() for p in model.parameters()) / 1e6


@torch.no_grad()
def macs(model: nn.Module, call: Callable[[], Any]) -> dict[str, int]:
    """Return the multiply-accumulates of every linear and convolutional layer while `call` runs, by the layer's name.

    Attention's own products are not among them. It works on tensors without contents too, where nothing is computed.
    """
    counts: Counter[str] = Counter()

    def hook(name: str) -> Callable:
        def count(layer: nn.Linear | nn.Conv2d, _: Any, output: torch.Tensor) -> None:
            counts[name] += output.numel() * layer.weight[0].numel()

        return count

    handles = [
        module.register_forward_hook(hook(name))
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
    ]
    try:
        call()
    finally:
        for handle in handles:
            handle.remove()
    return dict(counts)


def grouped(counts: dict[str, int]) -> dict[str, int]:
    """Return multiply-accumulates by kind of layer: numbers of blocks are taken out of the names."""
    totals: Counter[str] = Counter()
    for name, count in counts.items():
        totals[".".join(part for part in name.split(".") if not part.isdecimal())] += count
    return dict(totals)


@torch.no_grad()
def timed(call: Callable[[], Any], device: torch.device, repeats: int = 3) -> float:
    """Return the seconds of a call: the fastest of `repeats`, after one that warms up."""
    seconds = []
    for _ in range(1 + repeats):
        _wait(device)
        begun = time.perf_counter()
        call()
        _wait(device)
        seconds.append(time.perf_counter() - begun)
    return min(seconds[1:])


@torch.no_grad()
def call_memory(model: nn.Module, call: Callable[[], Any]) -> int:
    """Return the largest number of bytes that tensors hold at once while a call runs, the model's own included."""
    memory = Memory()
    with memory:
        memory.hold([*model.parameters(), *model.buffers()])
        call()
    return memory.peak


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


_COLUMNS = {  # of a row of the table: heading and digits
    "parameters": ("M parameters", 1),
    "gmacs": ("GMACs", 2),
    "published_gmacs": ("paper", 2),
    "decode_gmacs": ("decoder", 2),
    "memory_gb": ("GB", 2),
    "evaluation_ms": ("ms/evaluation", 1),
    "decode_ms": ("ms/decode", 1),
    "images_per_second": ("images/s", 3),
    "published_images_per_second": ("paper", 2),
}


def cost_table(result: Result) -> str:
    """Return the costs of a result as a table for people, beside the paper's, with the conditions measured under."""
    rows, p = result.more["rows"], result.protocol
    shown = [key for key in _COLUMNS if any(row.get(key) is not None for row in rows.values())]
    cells = [["", *(_COLUMNS[key][0] for key in shown)]]
    for name, row in rows.items():
        values = ((row.get(key), _COLUMNS[key][1]) for key in shown)
        cells.append([name, *("" if value is None else f"{value:.{digits}f}" for value, digits in values)])
    conditions = f"{p['device']}, PyTorch {p['torch']}, {p['precision']}, batch {p['batch']}, {p['steps']} steps, "
    return f"{table(cells)}\n\n{conditions}guidance {p['guidance']:g}"
