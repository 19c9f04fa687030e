"""What a stranger adds works wherever a built-in one does: each file in `tests/extension` is trained with, killed and
resumed, saved, loaded in a new process and used, with no change to the source tree.

Processes are few, because each costs seconds: `made` trains everything once, `fresh` is a new process that first has
none of the files and then loads them one by one.
"""

import hashlib
import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from softvq.files import read_json, read_tensors
from tests.sessions import Answer, environment, session

EXTENSION = Path(__file__).parent / "extension"
VIT = json.dumps({"width": 16, "depth": 1, "heads": 1, "patch_size": 8, "layer_scale": None})
STRIPES = '{"type": "Stripes", "count": 12}'
SMALL = (
    "--device cpu --precision float32 --log-every 1 --checkpoint-every 2 --val null --init vit --batch_size 4 "
    "--tokenizer.image_size 32 --tokenizer.tokens 16 --tokenizer.latent_dim 4 "
    f"--tokenizer.encoder '{VIT}' --tokenizer.decoder '{VIT}'"
)
# The command of the architecture's example, with fewer and smaller steps on fewer images.
ROUND = (
    "softvq train tokenizer emoji-64-quick --plugin round.py --tokenizer.quantizer Round "
    f"--tokenizer.quantizer.levels 201 --weights '{{\"reconstruction\": 1}}' --out run "
    f"--steps 6 --data photos --workers 0 {SMALL}"
)
NESTED = (
    "softvq train tokenizer emoji-64-quick --plugin round.py --plugin source.py --weights '{\"reconstruction\": 1}' "
    f"--data '{STRIPES}' --steps 3 {SMALL} "
)
PRODUCT = '--tokenizer.quantizer \'{"type": "Product", "inner": {"type": "Round", "levels": 201}, "groups": 2}\''
RESIDUAL = '--tokenizer.quantizer \'{"type": "Residual", "inner": {"type": "Round", "levels": 201}, "depth": 2}\''
OBJECTIVE = (
    f"softvq train tokenizer emoji-64-quick --plugin discriminator.py --plugin optimizer.py --plugin source.py "
    f"--plugin term.py --tokenizer.quantizer AE --data Stripes --optimizer Lion --adversarial "
    f'\'{{"discriminator": {{"type": "Small", "channels": 4}}}}\' --weights '
    f'\'{{"reconstruction": 1, "edges": 0.5, "adversarial": 0.1}}\' --steps 6 --workers 0 {SMALL} '
)
MOMENTUM = f"{OBJECTIVE} --optimizer Momentum --optimizer.lr 0.1 --steps 2"
GENERATOR = "softvq train generator emoji-sit --device cpu --log-every 1 --checkpoint-every 2 --optimizer AdamW "
MLP = f"{GENERATOR} --plugin mlp.py --data latents --model TokenMLP --model.width 32 --sampling null --steps 4 "
SIT = (
    f"{GENERATOR} --plugin path.py --plugin sampler.py --data latents --steps 4 --model.path turning "
    '--model.times middle --model.network \'{"tokens": 16, "channels": 4, "classes": 2, "width": 16, "depth": 1, '
    '"heads": 2}\' --sampling \'{"sampler": "midpoint", "steps": 4}\' '
)
DIES = """
import os, signal
from softvq.losses.terms import TERMS

own, calls = TERMS["edges"], []

def edges(seen):
    calls.append(1)
    if len(calls) == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return own(seen)

TERMS["edges"] = edges
"""
KEPT = """
import torch, softvq
from dataclasses import dataclass
from softvq.quantizers.base import Quantized, Quantizer, QuantizerConfig

@softvq.register
@dataclass(frozen=True)
class KeptConfig(QuantizerConfig):
    def build(self, dim): return Kept(self, dim)

class Kept(Quantizer):
    def __init__(self, config, dim):
        super().__init__()
        self.config, self.dim, self.in_dim = config, dim, dim
        self.shares = torch.linspace(1, 2, dim).tolist()
        self.register_buffer("scale", torch.tensor(self.shares), persistent=False)
        self.register_buffer("largest", torch.zeros(()))
    def forward(self, z, noise=None):
        if self.training:
            self.largest.copy_(torch.maximum(self.largest, z.detach().abs().max()))
        return Quantized(z * self.scale)
"""
SPAWNED = """
import multiprocessing, sys
from softvq.cli.main import main

if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")
    sys.exit(main(sys.argv[1:]))
"""
CONFIG = """
import torch, softvq
from dataclasses import dataclass
from softvq.quantizers.base import QuantizerConfig

@softvq.register
@dataclass(frozen=True)
class {name}(QuantizerConfig):
    levels: int = {levels}
    def build(self, dim): raise NotImplementedError
"""
BAD_FILES = {  # name -> a file that cannot be loaded
    "syntax": "import softvq\n\ndef f(:\n",
    "raises": "import softvq\n\nsoftvq.register(1 / 0)\n",
    "builtin": CONFIG.format(name="SoftVQConfig", levels=1),
    "another": CONFIG.format(name="RoundConfig", levels=1),
    "thawed": CONFIG.format(name="ThawedConfig", levels=1).replace("(frozen=True)", ""),
    "alone": CONFIG.format(name="AloneConfig", levels=1).replace("(QuantizerConfig)", ""),
    "inherits": "import softvq\nfrom softvq.optim import AdamWConfig\n\n@softvq.register\n"
    "class InheritsConfig(AdamWConfig):\n    decay: float = 0.1\n",
    "unbuilt": CONFIG.format(name="UnbuiltConfig", levels=1).replace("def build", "def built"),
}
WITHOUT = """
from softvq import Tokenizer
try:
    Tokenizer.from_pretrained("run")
except ValueError as error:
    print(type(error).__name__, error)
"""
IMPORTED = """
import round
from softvq import Tokenizer
tokenizer = Tokenizer.from_pretrained("run")
assert type(tokenizer.quantizer) is round.Round, type(tokenizer.quantizer)
tokenizer.reconstruct("photo.png").save("imported.png")
tokenizer.save_pretrained("again")
"""
CELLS = f"""
from softvq.config import parse, tagged
cell = {CONFIG.format(name="CellConfig", levels=2)!r}
exec(cell)
exec(cell.replace("= 2", "= 3"))
found = parse(QuantizerConfig, "Cell", "config")
assert type(found) is CellConfig
print(tagged(found))
"""
BATCHES = """
import torch
from softvq import Pipeline
pipeline = Pipeline.from_pretrained("mlp")
one, four = (pipeline.tensors(["standing", "lying"], num=4, seed=3, steps=3, batch_size=b) for b in (1, 4))
assert one.shape == (4, 3, 32, 32)
assert (one.int() - four.int()).abs().max() <= 1
assert (four[0].int() - four[1].int()).abs().max() > 1
"""
PATHS = """
import torch
from softvq.pipeline import Pipeline
from softvq.transports import paths
t = torch.linspace(0.05, 0.95, 10, dtype=torch.float64)
c = paths.coefficients("turning", t)
assert torch.allclose(paths.time_at("turning", c.sigma / c.alpha), t)
x, noise = torch.randn(2, 10, 3, dtype=torch.float64)
assert all(map(torch.allclose, paths.split("turning", *paths.mix("turning", x, noise, t), t), (x, noise)))
pipeline = Pipeline.from_pretrained("sit")
assert pipeline.generator.config.path == "turning"
torch.manual_seed(0)
for p in pipeline.generator.parameters():  # whose last layer starts at 0
    p.data += 0.1 * torch.randn_like(p)
found = {s: pipeline.latents(num=2, steps=64, sampler=s, guidance=1.0) for s in ("midpoint", "heun", "euler", "dpm")}
difference = {s: (latents - found["heun"]).abs().max().item() for s, latents in found.items()}
assert all(latents.isfinite().all() for latents in found.values())
assert 0 < difference["midpoint"] < difference["euler"], difference
"""


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    """A stranger's folder: the files, and some photos."""
    folder = tmp_path_factory.mktemp("stranger") / "work"
    shutil.copytree(EXTENSION, folder, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "photos").mkdir()
    rng = np.random.default_rng(0)
    for number in range(6):
        Image.fromarray(rng.integers(0, 256, (40, 36, 3), dtype=np.uint8)).save(folder / "photos" / f"{number}.png")
    shutil.copy(folder / "photos" / "0.png", folder / "photo.png")
    for name, text in {"dies": DIES, "kept": KEPT, "spawned": SPAWNED, **BAD_FILES}.items():
        (folder / f"{name}.py").write_text(text)
    return folder


def alone(command: str, work: Path, *python: str, **more: str) -> Answer:
    """Run a command as people do, in a process of its own; `python`: what stands for `-m softvq`."""
    words = [sys.executable, *(python or ("-m", "softvq")), *shlex.split(command)[1:]]
    found = subprocess.run(words, cwd=work, env=environment(**more), capture_output=True, text=True, timeout=300)
    return Answer(found.returncode, found.stdout, found.stderr)


@pytest.fixture(scope="module")
def made(work: Path) -> dict[str, Answer]:
    """Everything trained once: a run that dies, and in another process all others, with the shapes of all calls
    checked."""
    steps = {
        "checks": "import tests.conftest",
        "round": ROUND,
        "product": f"{NESTED} {PRODUCT} --out product --workers 0",
        "residual": f"{NESTED} {RESIDUAL} --out residual --workers 0",
        "kept": f"{NESTED} --plugin kept.py --tokenizer.quantizer Kept --out kept --workers 0",
        "objective": f"{OBJECTIVE} --out objective",
        "momentum": f"{MOMENTUM} --out momentum",
        "encode": f"softvq encode '{STRIPES}' --model product --out latents --device cpu --workers 0",
        "mlp": f"{MLP} --out mlp",
        "sit": f"{SIT} --out sit",
        "plan": f"{ROUND} --dry-run --json",
    }
    return {"killed": alone(f"{OBJECTIVE} --plugin dies.py --out killed", work), **session(work, steps)}


def cut(run: Path) -> None:
    """Make a copy of a run as one that was killed before its last checkpoint."""
    copy = run.with_name(f"{run.name}-cut")
    shutil.copytree(run, copy)
    shutil.rmtree(copy / "model")
    shutil.rmtree(max((copy / "checkpoints").iterdir()))
    assert len(list((copy / "checkpoints").iterdir())) == 1


def plant(work: Path) -> None:
    """Make a model folder that names a file in it, and a folder that has a source's name."""
    shutil.copytree(work / "run" / "model", work / "evil")
    said = read_json(work / "evil" / "config.json")
    said["about"]["plugins"] = {"evil.py": "0" * 16}
    (work / "evil" / "config.json").write_text(json.dumps(said))
    for folder in (work, work / "evil"):
        (folder / "evil.py").write_text("import pathlib\npathlib.Path('marker').touch()\n")


@pytest.fixture(scope="module")
def fresh(work: Path, made: dict[str, Answer]) -> dict[str, Answer]:
    """What a new process says to models and names whose files it has not, and then with them."""
    for name in ("run", "mlp", "sit"):
        cut(work / name)
    plant(work)
    reconstruct = "softvq reconstruct --device cpu photo.png"
    sample = "softvq sample --device cpu --num 2 --batch-size 2"
    network = "--plugin features.py --features random-convolutions --workers 0 --device cpu --json"
    measure = f"softvq evaluate reconstruction --model objective --data photos --no-lpips {network}"
    steps = {
        "run without": f"{reconstruct} --model run",
        "product without": f"{reconstruct} --model product",
        "residual without": f"{reconstruct} --model residual",
        "mlp without": f"{sample} --model mlp --out no.png",
        "sit without": f"{sample} --model sit --out no.png",
        "objective without": f"{reconstruct} --model objective --out objective.png",
        "evil without": f"{reconstruct} --model evil --out no.png",
        "train without": ROUND.replace("--plugin round.py", ""),
        "source without": "softvq encode Stripes --model objective --out no --device cpu",
        "features without": measure.replace("--plugin features.py", ""),
        "python without": WITHOUT,
        "missing": f"{reconstruct} --plugin missing.py",
        "folder": f"{reconstruct} --plugin photos",
        "no python": f"{reconstruct} --plugin photo.png",
        **{name: f"{reconstruct} --plugin {name}.py" for name in BAD_FILES if name != "another"},
        "imported": IMPORTED,
        "reconstruct": "softvq reconstruct --plugin round.py --model run photo.png",
        "another": f"{reconstruct} --plugin another.py",
        "cells": CELLS,
        "product": f"{reconstruct} --plugin round.py --model product --save-latents product.safetensors",
        "residual": f"{reconstruct} --model residual --save-latents residual.safetensors",
        "kept": f"{reconstruct} --plugin kept.py --model kept",
        "evil": f"{reconstruct} --model evil",
        "resume run": f"{ROUND.replace('--out run', '--out run-cut')} --resume",
        "resume killed": f"{OBJECTIVE} --out killed --resume",
        "resume mlp": f"{MLP} --out mlp-cut --resume",
        "resume sit": f"{SIT} --out sit-cut --resume",
        "sample mlp": f"{sample} --plugin mlp.py --model mlp --out mlp.png",
        "batches": BATCHES,
        "sample sit": f"{sample} --plugin sampler.py --plugin path.py --model sit --out sit.png --json",
        "paths": PATHS,
        "measure": f"{measure} --out measured",
        "again": f"{measure} --out again",
        "generation": f"softvq evaluate generation --model mlp -n 4 --out measured {network}",
        "no blocks": MLP.replace("--optimizer AdamW", "") + "--out no",
        "no sampler": MLP.replace("--sampling null", "") + "--out no",
        "before": "softvq evaluate reconstruction --plugin missing.py --model objective --data photos",
        "a folder": "import os; os.mkdir('Stripes')",
        "ambiguous": "softvq encode Stripes --model objective --out no --device cpu",
        "no folder": "os.rmdir('Stripes')",
    }
    return session(work, steps)


@pytest.fixture(scope="module")
def installed(work: Path, made: dict[str, Answer]) -> Answer:
    """The product's run again, with Round from an installed package and data workers that inherit no memory."""
    site = work.parent / "site"
    about = site / "stranger-1.0.dist-info"
    about.mkdir(parents=True)
    shutil.copy(work / "round.py", site / "stranger_rounds.py")
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: stranger\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[softvq.plugins]\nrounds = stranger_rounds\n")
    command = f"{NESTED} {PRODUCT} --out installed --workers 2".replace("--plugin round.py", "")
    return alone(command, work, "spawned.py", PYTHONPATH=str(site))


def checksum(work: Path, *names: str) -> dict[str, str]:
    return {name: hashlib.sha256((work / name).read_bytes()).hexdigest()[:16] for name in names}


def weights(run: Path) -> bytes:
    return (run / "model" / "model.safetensors").read_bytes()


def about(run: Path) -> dict:
    return read_json(run / "model" / "config.json")["about"]


def logged(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


TRAINED = ["round", "product", "residual", "kept", "objective", "momentum", "encode", "mlp", "sit", "plan"]


@pytest.mark.parametrize("name", TRAINED)
def test_what_is_added_is_trained_with(made: dict[str, Answer], name: str):
    assert made[name].code == 0, made[name].err


def test_a_run_records_its_plugins(made: dict[str, Answer], work: Path):
    for said in (about(work / "run"), read_json(work / "run" / "model.json")["about"]):
        assert said["plugins"] == checksum(work, "round.py")
    assert "`round.py`" in (work / "run" / "model" / "README.md").read_text()
    recorded = about(work / "objective")["plugins"]
    assert checksum(work, "discriminator.py", "optimizer.py", "source.py", "term.py").items() <= recorded.items()


def test_a_plan_knows_them_too(made: dict[str, Answer], work: Path):
    plan = json.loads(made["plan"].out)
    tensors = read_tensors(work / "run" / "model" / "model.safetensors")
    buffers = ("latent_mean", "latent_std")
    assert plan["parameters"]["tokenizer"] == sum(t.numel() for name, t in tensors.items() if name not in buffers)


def test_the_quantizer_is_the_one_in_the_file(fresh: dict[str, Answer], work: Path):
    assert fresh["imported"].code == 0, fresh["imported"].err
    assert fresh["reconstruct"].code == 0, fresh["reconstruct"].err
    assert weights(work / "run") == (work / "again" / "model.safetensors").read_bytes()
    assert Image.open(work / "imported.png").size == (32, 32)
    quantizer = read_json(work / "run" / "model" / "config.json")["config"]["quantizer"]
    assert quantizer == {"type": "Round", "levels": 201}


@pytest.mark.parametrize(("name", "layers"), [("product", 1), ("residual", 2)])
def test_quantizers_of_quantizers_hold_it(fresh: dict[str, Answer], work: Path, name: str, layers: int):
    """Latents are whole numbers, not the encoder's own; each quantizer inside adds up to 100."""
    assert fresh[name].code == 0, fresh[name].err
    own = read_tensors(work / name / "model" / "model.safetensors")
    latents = read_tensors(work / f"{name}.safetensors")["latents"] * own["latent_std"] + own["latent_mean"]
    assert latents.unique().numel() > 2
    assert (latents - latents.round()).abs().max() < 1e-3
    assert latents.abs().max() <= 100 * layers


def test_a_module_may_hold_what_is_not_saved(fresh: dict[str, Answer]):
    """Numbers and buffers that its constructor computes, as of torch's own modules."""
    assert fresh["kept"].code == 0, fresh["kept"].err


def test_buffers_of_the_average_are_those_of_the_model(made: dict[str, Answer], work: Path):
    run = work / "kept"
    last, average = (
        read_tensors(run / "checkpoints" / "step-0000003" / f"{name}.safetensors")
        for name in ("model", "model-average")
    )
    largest = last["model.quantizer.largest"]
    assert largest > 0
    assert average["quantizer.largest"] == largest
    assert read_tensors(run / "model" / "model.safetensors")["quantizer.largest"] == largest


def test_discriminator_term_optimizer_and_source_take_part(made: dict[str, Answer], work: Path):
    lines = [line for line in logged(work / "objective") if "loss/total" in line]
    assert len(lines) == 6
    for line in lines:
        parts = {name: line[f"loss/{name}"] for name in ("reconstruction", "edges", "adversarial")}
        assert line["loss/total"] == pytest.approx(
            parts["reconstruction"] + 0.5 * parts["edges"] + 0.1 * parts["adversarial"], rel=1e-5
        )
        assert parts["edges"] > 0
        assert line["optimizer/discriminator_gradient_norm"] > 0
    newest = work / "objective" / "checkpoints" / "step-0000006"
    rival = read_tensors(newest / "discriminator.safetensors")
    assert rival["discriminator.layers.0.weight"].shape == (4, 3, 4, 4)
    state = read_tensors(newest / "model-optimizer.safetensors")
    steps = {name: int(value) for name, value in state.items() if "/step" in name}
    assert set(steps.values()) == {6}
    assert all(name.endswith("/step:int") for name in steps)
    assert read_json(work / "objective" / "run.json")["images"]["count"] == 12


def test_an_optimizer_of_ones_own_has_its_rate_and_schedule(made: dict[str, Answer], work: Path):
    rates = [line["optimizer/lr"] for line in logged(work / "momentum") if "optimizer/lr" in line]
    assert rates == pytest.approx([0.1, 0.05])
    states = read_tensors(work / "momentum" / "checkpoints" / "step-0000002" / "model-optimizer.safetensors")
    assert {name.rsplit("/", 1)[1] for name in states} == {"momentum_buffer"}


def test_latents_of_a_source_have_its_classes(made: dict[str, Answer], work: Path):
    index = read_json(work / "latents" / "index.json")
    assert index["classes"] == ["lying", "standing"]
    assert about(work / "mlp")["classes"] == ["lying", "standing"]
    model = read_json(work / "mlp" / "model" / "config.json")["config"]
    assert model == {"type": "TokenMLP", "tokens": 16, "channels": 4, "classes": 2, "width": 32}


def test_a_killed_run_goes_on_as_if_nothing_had_been(made: dict[str, Answer], fresh: dict[str, Answer], work: Path):
    """Killed with an optimizer that counts its steps, and the discriminator's; resumed in another process."""
    assert made["killed"].code == -9
    assert fresh["resume killed"].code == 0, fresh["resume killed"].err
    assert "step 5/6" in fresh["resume killed"].err
    assert weights(work / "killed") == weights(work / "objective")
    last = "checkpoints/step-0000006"
    for part in ("model-optimizer", "model-average", "discriminator", "discriminator-optimizer"):
        files = [work / run / last / f"{part}.safetensors" for run in ("killed", "objective")]
        assert files[0].read_bytes() == files[1].read_bytes(), part


@pytest.mark.parametrize("name", ["run", "mlp", "sit"])
def test_a_run_resumed_from_its_last_but_one_checkpoint_is_the_same(fresh: dict[str, Answer], work: Path, name: str):
    answer = fresh[f"resume {name}"]
    assert answer.code == 0, answer.err
    last = {"run": "step 5/6", "mlp": "step 3/4", "sit": "step 3/4"}[name]
    assert last in answer.err
    assert weights(work / f"{name}-cut") == weights(work / name)


@pytest.mark.parametrize(
    ("name", "missing", "file"),
    [
        ("run", "Round", "round.py"),
        ("product", "Round", "round.py"),
        ("residual", "Round", "round.py"),
        ("mlp", "TokenMLP", "mlp.py"),
        ("sit", "turning", "path.py"),
    ],
)
def test_without_its_file_a_model_says_what_to_import(fresh: dict[str, Answer], name: str, missing: str, file: str):
    answer = fresh[f"{name} without"]
    assert answer.code == 1, answer
    assert answer.err.count("\n") == 1
    assert f"{name}/model/config.json" in answer.err
    for words in (f"'{missing}'", "import", file, "--plugin"):
        assert words in answer.err, words


def test_without_its_file_a_model_is_a_model_error(fresh: dict[str, Answer]):
    answer = fresh["python without"]
    assert answer.out.startswith("ModelError run/model/config.json: config.quantizer.type must be one of"), answer
    assert "adds 'Round', import it first (round.py, says its configuration)" in answer.out
    assert "--plugin" not in answer.out


def test_what_trained_a_model_is_not_needed_to_use_it(fresh: dict[str, Answer], work: Path):
    assert fresh["objective without"].code == 0, fresh["objective without"].err
    assert (work / "objective.png").is_file()


@pytest.mark.parametrize(
    ("name", "code", "words"),
    [
        ("train without", 2, "quantizer.type must be one of AE, GMMVQ, "),
        ("source without", 1, "there is no folder 'Stripes'"),
        ("features without", 1, "there is no feature network 'random-convolutions'"),
        ("missing", 2, "there is no file 'missing.py' to load as a plugin (--plugin)"),
        ("folder", 2, "there is no file 'photos' to load as a plugin (--plugin)"),
        ("no python", 2, "photo.png is no Python file (.py) (--plugin)"),
        ("syntax", 2, "syntax.py cannot be loaded (SyntaxError: invalid syntax (syntax.py, line 3))"),
        ("raises", 2, "raises.py cannot be loaded (ZeroDivisionError in line 3: division by zero)"),
        ("builtin", 2, "SoftVQConfig cannot be registered as 'SoftVQ', which is softvq.quantizers.soft.SoftVQConfig"),
        ("another", 2, "RoundConfig cannot be registered as 'Round', which is "),
        ("thawed", 2, "ThawedConfig must be a frozen dataclass"),
        ("alone", 2, "AloneConfig is derived from none of the bases of families"),
        ("inherits", 2, "InheritsConfig must be a frozen dataclass"),
        ("unbuilt", 2, "UnbuiltConfig "),
        ("no blocks", 2, "Muon has no matrices of transformer blocks to train; use the AdamW optimizer"),
        ("no sampler", 2, "a TokenMLP is sampled with euler, not 'dpm'"),
        ("ambiguous", 1, "'Stripes' is a folder and a registered source; write ./Stripes"),
        ("before", 2, "there is no file 'missing.py' to load as a plugin (--plugin)"),
    ],
)
def test_what_cannot_be_is_a_sentence(fresh: dict[str, Answer], name: str, code: int, words: str):
    answer = fresh[name]
    assert answer.code == code, answer
    assert answer.err.startswith("softvq: ")
    assert words in answer.err
    assert answer.err.count("\n") == 1
    assert answer.out == ""


def test_the_same_class_again_takes_its_own_place(fresh: dict[str, Answer]):
    """A notebook's cell that is run twice; `round.py` imported as a module and then given with --plugin."""
    assert fresh["cells"].code == 0, fresh["cells"].err
    assert fresh["cells"].out.strip() == "{'type': 'Cell', 'levels': 3}"
    assert fresh["imported"].code == fresh["reconstruct"].code == 0


def test_a_model_folder_imports_nothing(fresh: dict[str, Answer], work: Path):
    """It names a file that is there, beside it and where softvq was started."""
    assert fresh["evil without"].code == 1
    assert "evil.py" in fresh["evil without"].err
    assert fresh["evil"].code == 0, fresh["evil"].err
    assert not list(work.rglob("marker"))


def test_a_generator_is_sampled_from(fresh: dict[str, Answer], work: Path):
    assert fresh["sample mlp"].code == 0, fresh["sample mlp"].err
    settings = read_json(work / "mlp.json")
    assert (settings["sampler"], settings["labels"]) == ("euler", [0, 1])
    assert fresh["batches"].code == 0, fresh["batches"].err


def test_a_sampler_and_a_path_are_sampled_with(fresh: dict[str, Answer]):
    assert fresh["sample sit"].code == 0, fresh["sample sit"].err
    assert json.loads(fresh["sample sit"].out)["sampler"] == "midpoint"
    assert fresh["paths"].code == 0, fresh["paths"].err


def test_a_feature_network_is_measured_with(fresh: dict[str, Answer], work: Path):
    for name in ("measure", "again", "generation"):
        assert fresh[name].code == 0, fresh[name].err
    first, second, generated = (json.loads(fresh[name].out) for name in ("measure", "again", "generation"))
    assert first["scores"] == second["scores"]
    assert first["scores"]["rfd"] > 0
    assert first["protocol"]["features"] == "random-convolutions"
    assert first["protocol"]["weights"] == generated["protocol"]["weights"]
    assert generated["scores"]["gfd"] > 0
    assert generated["protocol"]["reference"] == STRIPES


def test_an_installed_package_is_found_and_workers_that_inherit_nothing_have_the_files(installed: Answer, work: Path):
    assert installed.code == 0, installed.err
    assert about(work / "installed")["plugins"] == {**checksum(work, "source.py"), "stranger_rounds": "stranger 1.0"}
    assert weights(work / "installed") == weights(work / "product")


def test_all_processes_of_torchrun_have_them(made: dict[str, Answer], work: Path):
    start = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "softvq"]
    answer = alone(f"{MOMENTUM} --out ranks", work, *start)
    assert answer.code == 0, answer.err
    found, expected = (read_tensors(work / run / "model" / "model.safetensors") for run in ("ranks", "momentum"))
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.allclose(found[name], tensor, atol=2e-6, rtol=1e-4), name
