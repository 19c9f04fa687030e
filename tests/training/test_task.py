"""A task of one's own: a distillation whose frozen teacher needs nothing of the loop, the state or the checkpoints."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from torch import Tensor

from softvq import Generator, GeneratorConfig, Player, RunOptions, Task, train
from softvq.data.latents import LatentBatch
from softvq.errors import ConfigError, Interrupted, ModelError
from softvq.files import read_tensors
from softvq.generators.sit import SiTConfig
from softvq.generators.transformer import TransformerConfig
from softvq.optim import AdamWConfig, OptimizerConfig
from softvq.training.options import Intervals
from softvq.training.plan import plan
from softvq.training.task import Hook

CPU = torch.device("cpu")
SHAPE = (4, 3)
NETWORK = TransformerConfig(*SHAPE, classes=2, width=16, depth=2, heads=2)


@dataclass(frozen=True)
class DistillationRecipe:
    """A student of the teacher's kind, that learns what the teacher says of noise."""

    name: str = "distillation"
    about: str = "A test."
    model: GeneratorConfig = field(default_factory=lambda: SiTConfig(NETWORK))
    batch_size: int = 4
    steps: int = 6
    optimizer: OptimizerConfig = field(default_factory=lambda: AdamWConfig(lr=1e-2, warmup_steps=2))


class DistillationTask(Task):
    """A student player and a frozen teacher, of which only this file knows."""

    kind = "student"

    def build(self, weights: bool = True) -> dict[str, Player]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            student, average, teacher = (self.recipe.model.build() for _ in range(3))
            torch.nn.init.normal_(teacher.network.final_layer.linear.weight)
        if weights:
            average.load_state_dict(student.state_dict())
        return {"model": Player(student, self.recipe.optimizer, average=average), "teacher": Player(teacher)}

    def batches(self, start: int) -> Iterator[LatentBatch]:
        step = start
        while True:
            noise = torch.randn(self.recipe.batch_size, *SHAPE, generator=torch.Generator().manual_seed(step))
            yield LatentBatch(noise, torch.zeros(len(noise), dtype=torch.long), [""] * len(noise), [step], step=step)
            step += 1

    def step(self, players: dict[str, Player], batch: LatentBatch) -> dict[str, Tensor]:
        student, time = players["model"], torch.full((len(batch),), 0.5)
        student.set_rate(batch.step, self.steps)
        with torch.no_grad():
            wanted = players["teacher"](batch.latents, time, batch.labels)
        loss = (student(batch.latents, time, batch.labels) - wanted).square().mean()
        loss.backward()
        norm, _ = student.update()
        student.update_average(0.9, batch.step)
        return {"loss/total": loss.detach(), "optimizer/gradient_norm": norm}

    def finish(self, players: dict[str, Player]) -> Generator:
        model = self.recipe.model.build(self.about())
        model.load_state_dict(players["model"].average.state_dict())
        return model

    def describe(self) -> dict[str, object]:
        return {"recipe": {"batch_size": self.recipe.batch_size}}

    def example(self, rows: int) -> LatentBatch:
        return LatentBatch(torch.zeros(rows, *SHAPE), torch.zeros(rows, dtype=torch.long), [""] * rows, [0] * rows)


def options(out: Path) -> RunOptions:
    return RunOptions(out, CPU, "float32", intervals=Intervals(log=1, checkpoint=2, samples=100))


def newest(out: Path) -> Path:
    return max((out / "checkpoints").iterdir())


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tasks") / "whole"
    train(DistillationTask(DistillationRecipe()), options(out))
    return out


def test_the_student_learns_and_is_found_as_any_model(whole: Path):
    model = Generator.from_pretrained(whole)
    assert model.about["recipe"]["name"] == "distillation"
    last = newest(whole)
    average = read_tensors(last / "model-average.safetensors")
    assert all(torch.equal(average[name], tensor) for name, tensor in model.state_dict().items())
    trained = Generator.from_pretrained(whole, average=False)
    weights = read_tensors(last / "model.safetensors")
    assert all(torch.equal(weights[name], tensor) for name, tensor in trained.state_dict().items())
    assert not all(torch.equal(a, b) for a, b in zip(trained.parameters(), model.parameters(), strict=True))


def test_the_frozen_teacher_is_in_no_checkpoint(whole: Path):
    last = newest(whole)
    names = {path.name for path in last.iterdir()}
    assert names == {"model.safetensors", "model-average.safetensors", "model-optimizer.safetensors", "state.json"}


def test_a_resumed_run_equals_one_that_was_not_stopped(whole: Path, tmp_path: Path):
    def stop(state, log):
        if state.step == 3:
            raise Interrupted(15, "stopped")

    with pytest.raises(Interrupted):
        train(DistillationTask(DistillationRecipe()), options(tmp_path), hooks=[Hook(1, stop)])
    train(DistillationTask(DistillationRecipe()), options(tmp_path))
    for file in ("model", "model-average", "model-optimizer"):
        one, other = (read_tensors(newest(out) / f"{file}.safetensors") for out in (whole, tmp_path))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_another_run_in_the_folder_is_refused_and_its_differences_are_named(whole: Path):
    with pytest.raises(ConfigError, match=r"recipe.batch_size \(4 there, 8 now\); use another folder, or") as error:
        train(DistillationTask(DistillationRecipe(batch_size=8)), options(whole))
    assert error.value.setting == "out"


def test_a_task_of_ones_own_is_planned(whole: Path):
    found = plan(DistillationTask(DistillationRecipe()), options(whole))
    assert found.parameters.keys() == {"network", "teacher (frozen)"}
    assert len(set(found.parameters.values())) == 1
    saved = sum(p.stat().st_size for p in newest(whole).glob("*.safetensors"))
    assert found.checkpoint == pytest.approx(saved, rel=0.1)


def test_a_task_without_an_example_is_not_planned(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delattr(DistillationTask, "example")
    with pytest.raises(ConfigError, match="a DistillationTask cannot be planned: it gives no example of a batch"):
        plan(DistillationTask(DistillationRecipe()))


def test_a_damaged_checkpoint_gives_way_to_the_one_before(whole: Path, tmp_path: Path):
    shutil.copytree(whole, tmp_path / "run")
    (newest(tmp_path / "run") / "model-optimizer.safetensors").write_bytes(b"")
    again = train(DistillationTask(DistillationRecipe()), options(tmp_path / "run"))
    one, other = (read_tensors(folder / "model.safetensors") for folder in (again, whole / "model"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    for folder in (tmp_path / "run" / "checkpoints").iterdir():
        (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(ModelError, match="no checkpoint can be read"):
        train(DistillationTask(DistillationRecipe()), options(tmp_path / "run"))
