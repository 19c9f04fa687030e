"""Numbers that are none, as a command gets them: a sentence and exit code 2, before any work."""

from pathlib import Path

import pytest

from tests.cli.running import refusal

TRAIN = "train tokenizer emoji-64-quick"


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        ("sample --guidance nan", "guidance must be a finite number, not nan (--guidance)."),
        ("sample --guidance inf", "guidance must be a finite number, not inf (--guidance)."),
        ("sample --guidance -1", "guidance must not be negative, not -1; 1 is none (--guidance)."),
        ("sample --interval 0 nan", "the guidance interval must lie in [0, 1], not [0.0, nan]."),
        ("sample --steps 0", "steps must be at least 1, not 0 (--steps)."),
        ("sample --num -3", "num must be at least 1, not -3 (--num)."),
        (f"{TRAIN} --most-bad nan", "most_bad is a share, from 0 to 1, not nan (--most-bad)."),
        (f"{TRAIN} --most-bad -0.5", "most_bad is a share, from 0 to 1, not -0.5 (--most-bad)."),
        (f"{TRAIN} --most-bad 1.5", "most_bad is a share, from 0 to 1, not 1.5 (--most-bad)."),
        (f"{TRAIN} --optimizer.lr NaN", "optimizer.lr must be a finite number, not nan."),
        ("bench cost --guidance nan", "guidance must be a finite number, not nan (--guidance)."),
        ("bench cost --repeats 0", "repeats must be at least 1, not 0 (--repeats)."),
        ("evaluate generation --guidance 1 nan", "guidance must be a finite number, not nan (--guidance)."),
        ("evaluate generation --guidance nan", "guidance must be a finite number, not nan (--guidance)."),
        ("evaluate generation --num 1", "num must be at least 2, not 1 (--num)."),
        ("latents --num 0", "num must be at least 1, not 0 (--num)."),
    ],
)
def test_a_number_that_is_none_is_a_sentence(
    command: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    assert refusal(2, *command.split()).endswith(sentence)
