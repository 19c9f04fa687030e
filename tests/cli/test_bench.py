"""`softvq bench cost`: rows and models by name, a file a command, a table; what is counted is in
tests/evaluation/test_cost_rows.py."""

import json
from pathlib import Path
from typing import Any

import pytest

from softvq.evaluation import cost
from softvq.evaluation.cost import ROWS
from tests.cli.running import refusal, result, softvq
from tests.evaluation.test_cost_rows import two_seconds  # noqa: F401 (a fixture)


def test_options_are_the_functions_settings(tmp_path: Path, monkeypatch):
    asked: list[Any] = []

    def measure(rows: Any, **settings: Any) -> None:
        asked.append((tuple(rows), settings))
        raise KeyboardInterrupt

    monkeypatch.setattr(cost, "cost", measure)
    default = {"models": (), "steps": 50, "guidance": 1.75, "batch_size": None, "repeats": 3, "timed": True}
    default |= {"device": "auto", "precision": "auto"}
    words = ("--guidance", 2, "--steps", 7, "--batch-size", 4, "--repeats", 1, "--no-time", "--device", "cpu")
    changed = {"guidance": 2.0, "steps": 7, "batch_size": 4, "repeats": 1, "timed": False, "device": "cpu"}
    for given in ((), ("sit-xl-64", "kl-f8"), ("--model", "a", "--model", "b"), (*words, "--precision", "bfloat16")):
        assert softvq("bench", "cost", *given, "--out", tmp_path)[0] == 130
    assert asked == [
        ((), default),
        (("sit-xl-64", "kl-f8"), default),
        ((), {**default, "models": ("a", "b")}),
        ((), {**default, **changed, "precision": "bfloat16"}),
    ]


def test_the_file_holds_what_is_told(tmp_path: Path):
    told = result("bench", "cost", "softvq-s-64", "softvq-b-64", "--no-time", "--out", tmp_path)
    (path,) = tmp_path.glob("*")
    assert str(path) == told["file"]
    stored = json.loads(path.read_text())
    assert stored == {key: value for key, value in told.items() if key != "file"}
    assert list(stored["rows"]) == ["softvq-s-64", "softvq-b-64"]


def test_the_same_command_has_one_file_and_another_its_own(tmp_path: Path):
    for steps in (5, 5, 6):
        result("bench", "cost", "--model", "softvq-emoji-64", "--steps", steps, "--no-time", "--out", tmp_path)
    assert sorted(json.loads(path.read_text())["protocol"]["steps"] for path in tmp_path.iterdir()) == [5, 6]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["speed"], 2, "there is no command 'speed'; valid: cost."),
        (["cost", "sit-xl-46"], 2, "there is no row 'sit-xl-46'; did you mean sit-xl-64"),
        (["cost", "--steps", "0"], 2, "steps must be at least 1, not 0"),
        (["cost", "--repeats", "0"], 2, "must be at least 1"),
        (["cost", "--batch-size", "0"], 2, "must be at least 1"),
        (["cost", "--batch-size", "-2"], 2, "must be at least 1"),
        (["cost", "sit-xl-64", "--model", "emoji-sit"], 2, "rows or models are measured, not both at once (--model)"),
        (["cost", "--model", "nowhere"], 1, "no model folder 'nowhere'"),
        (["cost", "--model", "emoji-sit", "--device", "tpu"], 2, "the device 'tpu' cannot be used here"),
    ],
)
def test_what_cannot_be_measured_is_one_sentence(tmp_path: Path, monkeypatch, words, code: int, message: str):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cost, "_measured", lambda *_: pytest.fail("something was measured"))
    assert message in refusal(code, "bench", *words)
    assert not list(tmp_path.iterdir())


def test_rows_are_listed(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, told, _ = softvq("bench", "cost", "--list")
    assert code == 0
    assert [line.split()[0] for line in told.splitlines()] == list(ROWS)
    assert "Table 1: SiT-XL, SoftVQ-L, 64 tokens" in told
    assert result("bench", "cost", "--list") == {"rows": list(ROWS)}
    assert not list(tmp_path.iterdir())


def test_people_get_a_table(two_seconds, tmp_path: Path):  # noqa: F811
    flags = ["--model", "emoji-sit", "--model", "softvq-emoji-64", "--steps", 10, "--batch-size", 1, "--guidance", 1]
    code, told, _ = softvq("bench", "cost", *flags, "--device", "cpu", "--out", tmp_path)
    assert code == 0
    head, sit, tokenizer, _, about, file = told.splitlines()
    assert head.split()[:4] == ["M", "parameters", "GMACs", "decoder"]
    assert "paper" not in head  # which has no figure for these
    assert sit.split()[0] == "emoji-sit"
    assert sit.split()[-4:] == ["3.00", "2000.0", "2000.0", "0.045"]  # 1 / (10 · 2 + 2) images a second
    assert tokenizer.split()[-4:] == ["3.00", "2000.0", "2000.0", "0.250"]
    assert "float32, batch 1, 10 steps, guidance 1" in f"{about} {file}"
    assert Path(told.splitlines()[-1]).is_file()
