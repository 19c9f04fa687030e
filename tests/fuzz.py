"""Damaged model folders by the thousand: each must load, or be refused with a sentence, within a second and a gigabyte.

    python -m tests.fuzz 2400       prints JSON: how many loaded, how many were refused, and every failure

Runs in a process of its own, with its address space limited to a gigabyte more than it starts with.
"""

import json
import random
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from softvq import Tokenizer, layers
from softvq.errors import ConfigError, ModelError
from softvq.layers import ViTConfig
from softvq.quantizers.compose import ProductConfig
from softvq.quantizers.soft import SoftVQConfig
from softvq.released import UNUSED
from softvq.tokenizer import TokenizerConfig
from tests.released import released_folder

VIT = ViTConfig(width=16, depth=1, heads=2, patch_size=8)
Files = dict[str, bytes]
HUGE = (-1, 0, 10**6, 2**31, 2**40, 2**62, 2**64, 10**30)


def split(weights: bytes) -> tuple[dict[str, Any], bytes]:
    """A safetensors file's header and data."""
    size = int.from_bytes(weights[:8], "little")
    return json.loads(weights[8 : 8 + size]), weights[8 + size :]


def join(header: dict[str, Any], data: bytes) -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def flip(content: bytes, first: int, last: int, rng: random.Random) -> bytes:
    """One to three bits of a stretch of bytes turned over."""
    damaged = bytearray(content)
    for _ in range(rng.randint(1, 3)):
        damaged[rng.randrange(first, last)] ^= 1 << rng.randrange(8)
    return bytes(damaged)


def flip_config(files: Files, rng: random.Random) -> None:
    files["config.json"] = flip(files["config.json"], 0, len(files["config.json"]), rng)


def flip_header(files: Files, rng: random.Random) -> None:
    weights = files["model.safetensors"]
    files["model.safetensors"] = flip(weights, 0, 8 + int.from_bytes(weights[:8], "little"), rng)


def flip_data(files: Files, rng: random.Random) -> None:
    weights = files["model.safetensors"]
    first = 8 + int.from_bytes(weights[:8], "little")
    files["model.safetensors"] = flip(weights, first, len(weights), rng)


def truncate(files: Files, rng: random.Random) -> None:
    name = rng.choice(list(files))
    files[name] = files[name][: rng.randrange(len(files[name]))]


def other_dtype(files: Files, rng: random.Random) -> None:
    header, data = split(files["model.safetensors"])
    entry = header[rng.choice([name for name in header if name != "__metadata__"])]
    entry["dtype"] = rng.choice(["I32", "U32", "F16", "F64", "BOOL", "I64", "F8_E4M3", "BF16", "C64", "nothing"])
    files["model.safetensors"] = join(header, data)


def huge_shape(files: Files, rng: random.Random) -> None:
    header, data = split(files["model.safetensors"])
    entry = header[rng.choice([name for name in header if name != "__metadata__"])]
    entry["shape"] = [rng.choice(HUGE) for _ in range(rng.randint(0, 5))]
    if rng.random() < 0.5:
        entry["data_offsets"] = [0, rng.choice(HUGE)]
    files["model.safetensors"] = join(header, data)


def numbers(node: Any, path: tuple = ()) -> list[tuple]:
    """Where the numbers of nested JSON are."""
    if isinstance(node, dict | list):
        items = node.items() if isinstance(node, dict) else enumerate(node)
        return [found for key, value in items for found in numbers(value, (*path, key))]
    return [path] if isinstance(node, int | float) and not isinstance(node, bool) else []


def huge_config(files: Files, rng: random.Random) -> None:
    config = json.loads(files["config.json"])
    for path in rng.sample(numbers(config), rng.randint(1, 3)):
        node = config
        for key in path[:-1]:
            node = node[key]
        node[path[-1]] = rng.choice((*HUGE, 1e308, -1e-308))
    files["config.json"] = json.dumps(config).encode()


def nested_config(files: Files, rng: random.Random) -> None:
    """Quantizers in quantizers in quantizers."""
    config = json.loads(files["config.json"])
    inner: Any = {"type": "AE"}
    groups = rng.choice((1, 2, 1000))
    for _ in range(rng.choice((3, 30, 400))):
        inner = {"type": rng.choice(("Product", "Residual")), "inner": inner}
        inner["groups" if inner["type"] == "Product" else "depth"] = groups
    config.get("config", config)["quantizer"] = inner
    files["config.json"] = json.dumps(config).encode()


def lost_key(files: Files, rng: random.Random) -> None:
    config = json.loads(files["config.json"])
    del config[rng.choice(list(config))]
    files["config.json"] = json.dumps(config).encode()


def odd_about(files: Files, rng: random.Random) -> None:
    """What is said about a model, of the wrong kind."""
    config = json.loads(files["config.json"])
    about = config.setdefault("about", {})
    odd = rng.choice((None, 5, "x", [1], {"a": [1]}, {"psnr_floor": "x"}, "\\ud800", -1e400, {"recipe": {"data": 1}}))
    about[rng.choice(("recipe", "figures", "license", "source", "command", "domain"))] = odd
    files["config.json"] = json.dumps(config).encode()


def many_parts(files: Files, rng: random.Random) -> None:
    """More blocks or codebooks than there are, with as many tensors as it takes to look right."""
    config = json.loads(files["config.json"])
    header, data = split(files["model.safetensors"])
    count = rng.choice((100, 2_000, 20_000))
    if "config" in config:
        config["config"]["encoder"]["depth"] = count
        header |= {f"t{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(count)}
    else:
        header["quantize.embedding"]["shape"] = [count, 0, config["codebook_embed_dim"]]
        header["quantize.embedding"]["data_offsets"] = [0, 0]
        config |= {"num_codebooks": count, "num_latent_tokens": count}
    files["config.json"] = json.dumps(config).encode()
    files["model.safetensors"] = join(header, data)


def not_a_number(files: Files, rng: random.Random) -> None:
    header, data = split(files["model.safetensors"])
    names = [name for name in header if name != "__metadata__" and not name.startswith(UNUSED)]
    entry = header[rng.choice(names)]
    first, last = entry["data_offsets"]
    at = first + 4 * rng.randrange((last - first) // 4)
    value = rng.choice((b"\x00\x00\xc0\x7f", b"\x00\x00\x80\x7f", b"\x00\x00\x80\xff"))  # NaN, Inf, -Inf
    files["model.safetensors"] = join(header, data[:at] + value + data[at + 4 :])


DAMAGES: list[Callable[[Files, random.Random], None]] = [
    *(flip_config, flip_header, flip_data, flip_config, flip_header, flip_data),
    *(truncate, other_dtype, huge_shape, huge_config, nested_config, lost_key, not_a_number),
    *(odd_about, many_parts),
]


def originals(folder: Path) -> dict[str, Files]:
    """A small model in our format, and one in the released format."""
    quantizer = ProductConfig(SoftVQConfig.released(8), 2, axis="token", kl="pooled")
    tokenizer = Tokenizer(TokenizerConfig(16, 4, 2, VIT, VIT, quantizer), {"figures": {"psnr": 20.5}})
    tokenizer.save_pretrained(folder / "ours")
    layers.VITS["vit_tiny"] = VIT
    released_folder(tokenizer, "vit_tiny", folder / "released")
    names = ("config.json", "model.safetensors")
    return {kind: {n: (folder / kind / n).read_bytes() for n in names} for kind in ("ours", "released")}


def attempt(files: Files, folder: Path, damage: str) -> tuple[str, str | None]:
    """(`loaded` or `refused`, what is wrong with that)."""
    for name, content in files.items():
        (folder / name).write_bytes(content)
    start = time.process_time()  # of this process: others may have the machine
    outcome, failure = "loaded", None
    try:
        model = Tokenizer.from_pretrained(folder)
        model.encode(torch.zeros(1, 3, 16, 16))
        model.save_pretrained(folder / "again")
        if not all(tensor.isfinite().all() for tensor in model.state_dict().values()):
            failure = "loaded NaN or Inf"
        if damage == "not_a_number":
            failure = "loaded a file with NaN or Inf"
    except (ModelError, ConfigError) as error:
        outcome = "refused"
        if "\n" in str(error) or len(str(error)) < 20 or len(str(error)) > 1000:
            failure = f"no sentence: {error}"
        if damage == "flip_data" and "NaN" not in str(error) and "latent_std" not in str(error):
            failure = f"refused although only data changed: {error}"
    except BaseException as error:
        failure = f"{type(error).__name__}: {error}"
    if (seconds := time.process_time() - start) > 1:
        failure = f"took {seconds:.1f} s ({failure})"
    return outcome, failure


def main(cases: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    outcomes: Counter[str] = Counter()
    failures = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        kinds = originals(folder)
        (folder / "case").mkdir()
        for kind, files in kinds.items():
            attempt(files, folder / "case", "none")  # the first one also imports what torch imports late
            outcome = attempt(files, folder / "case", "none")
            assert outcome == ("loaded", None), (kind, outcome)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 2**30, resource.RLIM_INFINITY))
        for number in range(cases):
            rng = random.Random(number)
            kind = ("ours", "released")[number % 2]
            damage = DAMAGES[number // 2 % len(DAMAGES)]
            files = dict(kinds[kind])
            damage(files, rng)
            outcome, failure = attempt(files, folder / "case", damage.__name__)
            outcomes[f"{damage.__name__} {outcome}"] += 1
            if failure is not None:
                failures.append(f"case {number}, {damage.__name__} of {kind}: {failure}")
    return {"cases": cases, "outcomes": dict(sorted(outcomes.items())), "failures": failures}


if __name__ == "__main__":
    print(json.dumps(main(int(sys.argv[1])), indent=1))
