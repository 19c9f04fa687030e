"""Compare what two versions of the code make, bit for bit: samples, reconstructions, latents, evaluations, short runs.

  python benchmarks/bit_for_bit.py OLD_CHECKOUT NEW_CHECKOUT

Each of the commands below runs with either checkout, in a folder of its own and on one thread; what they print as JSON
and the files that they write are compared (dates, versions, paths and text meant for people are left out). Prints a
line a command; exits with 1 where anything differs. Takes about four minutes on one core.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from safetensors import safe_open

MODELS = ["--model", "softvq-emoji-64"]
COMMANDS = {
    "samples": ["sample", "-n", "48", "--seed", "3", "--npz", "own.npz", "--batch-size", "20"],
    "heun": ["sample", "-n", "9", "--sampler", "heun", "--steps", "6", "--npz", "heun.npz"],
    "dopri5": ["sample", "-n", "4", "--sampler", "dopri5", "--npz", "dopri5.npz"],
    "sde": ["sample", "-n", "9", "--sampler", "sde", "--steps", "8", "--npz", "sde.npz", "--labels", "random"],
    "dpm-sde": ["sample", "-n", "6", "--sampler", "dpm-sde", "--interval", "0", "0.7", "--npz", "dpmsde.npz"],
    "picture": ["sample", "-n", "6", "--class", "flags", "--class", "food-drink", "--out", "picture.png"],
    "encode": ["encode", "emoji-val", *MODELS, "--out", "latents", "--workers", "0"],
    "encode train": ["encode", "emoji-dev", *MODELS, "--out", "dev", "--workers", "0", "--no-mirror"],
    "demo": ["demo", "--out", "demo"],
    "evaluate reconstruction": ["evaluate", "reconstruction", *MODELS, "--data", "emoji-val", "--out", "evaluated"],
    "evaluate generation": ["evaluate", "generation", "--num", "64", "--reference", "emoji-val", "--out", "evaluated"],
    "tokenizer run": ["train", "tokenizer", "emoji-64-quick", "--steps", "4", "--out", "quick", "--workers", "0"],
    "adversarial run": ["train", "tokenizer", "softvq-s-64-tiny", "--steps", "4", "--out", "adversarial"],
    "alignment run": ["train", "tokenizer", "emoji-64-32", "--steps", "3", "--out", "aligned", "--workers", "0"],
    "printed run": ["train", "tokenizer", "softvq-s-64-rpq-tiny", "--steps", "3", "--out", "rpq", "--workers", "0"],
    "sit run": ["train", "generator", "emoji-sit", "--data", "latents", "--steps", "4", "--out", "sit"],
    "dit run": ["train", "generator", "emoji-dit", "--data", "latents", "--steps", "4", "--out", "dit"],
    "mar run": ["train", "generator", "emoji-mar", "--data", "latents", "--steps", "4", "--out", "mar"],
    "dit samples": ["sample", "--model", "dit/model", "-n", "4", "--sampler", "ddpm", "--steps", "8", "--npz", "d.npz"],
    "mar samples": ["sample", "--model", "mar/model", "-n", "4", "--npz", "m.npz"],
}
TEXT = {"date", "version", "file", "picture", "images", "model", "reference", "command", "seconds", "torch", "out"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--only", nargs="+", help="these of the commands (generators need 'encode', samples their run)")
    options = parser.parse_args()
    differs = False
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
        folders = (Path(one), Path(other))
        for name, command in COMMANDS.items():
            if options.only and name not in options.only:
                continue
            found = [
                made(source.resolve(), folder, command)
                for source, folder in zip((options.old, options.new), folders, strict=True)
            ]
            differing = sorted(
                key for key in found[0].keys() | found[1].keys() if found[0].get(key) != found[1].get(key)
            )
            differs |= bool(differing)
            verdict = f"differ: {', '.join(differing)}" if differing else "equal"
            print(f"{name:26} {len(found[0])} values and files: {verdict}", flush=True)
    return int(differs)


def made(source: Path, folder: Path, command: list[str]) -> dict[str, object]:
    """Run a command; return its JSON result's figures and the checksums of what it wrote."""
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    environment = {**os.environ, "PYTHONPATH": str(source), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "softvq", *command, "--json", "--device", "cpu"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        sys.exit(f"{source}: softvq {' '.join(command)}\n{done.stderr[-2000:]}")
    written = [path for path in folder.rglob("*") if path.is_file() and before.get(path) != path.stat().st_mtime_ns]
    checksums = {str(path.relative_to(folder)): checksum(path) for path in written if "checkpoints" not in path.parts}
    for checkpoint in {path.parent for path in written if path.parent.parent.name == "checkpoints"}:
        checksums[str(checkpoint.relative_to(folder))] = contents(checkpoint)
    return {**figures(json.loads(done.stdout)), **{name: value for name, value in checksums.items() if value}}


def figures(node: object, name: str = "") -> dict[str, object]:
    """Return the numbers of nested results by dotted names."""
    if isinstance(node, dict):
        return {
            k: v for key, item in node.items() if key not in TEXT for k, v in figures(item, f"{name}.{key}").items()
        }
    if isinstance(node, list):
        return {k: v for number, item in enumerate(node) for k, v in figures(item, f"{name}.{number}").items()}
    return {name: node} if isinstance(node, int | float) else {}


def contents(checkpoint: Path) -> str:
    """Return a checksum of all tensors of a checkpoint, whatever they and their files are called."""
    found = []
    for path in checkpoint.glob("*.safetensors"):
        with safe_open(path, "np") as file:
            found += [hashlib.sha256(file.get_tensor(name).tobytes()).hexdigest() for name in file.keys()]  # noqa: SIM118
    return hashlib.sha256("".join(sorted(found)).encode()).hexdigest()


def checksum(path: Path) -> str | None:
    """Return a checksum of a file's arrays, tensors or pixels; None for files that are for people."""
    digest = hashlib.sha256()
    if path.suffix == ".npz":
        with np.load(path) as file:
            for name in sorted(file.files):
                digest.update(name.encode() + file[name].tobytes())
    elif path.suffix == ".safetensors":
        with safe_open(path, "np") as file:
            for name in sorted(file.keys()):
                digest.update(name.encode() + file.get_tensor(name).tobytes())
    elif path.suffix == ".png" and "evaluated" not in path.parts:
        digest.update(path.read_bytes())
    else:
        return None
    return digest.hexdigest()


if __name__ == "__main__":
    sys.exit(main())
