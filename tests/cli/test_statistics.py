"""`softvq statistics`."""

import json
from pathlib import Path

import pytest
import torch

from softvq import Tokenizer
from tests.cli.running import softvq


def test_statistics_are_stored_in_another_folder(emoji: Path, tmp_path: Path):

    data = emoji.parent
    (data / "second.webp").write_bytes(emoji.read_bytes())
    out = tmp_path / "fitted"
    code, text, _ = softvq("statistics", "softvq-emoji-64", "--data", data, "--out", out, "--json")
    assert code == 0
    fitted = Tokenizer.from_pretrained(out)
    assert json.loads(text)["std"] == pytest.approx(fitted.latent_std.tolist())
    assert not torch.allclose(fitted.latent_std, Tokenizer.from_pretrained("softvq-emoji-64").latent_std)
