"""`softvq push`: what is asked of the hub; that it uploads what loads again is in tests/test_hub.py."""

from pathlib import Path

import pytest
import torch

from softvq import Generator, Tokenizer
from softvq.errors import ModelError
from tests.cli.running import refusal, result, softvq


@pytest.mark.parametrize(
    ("words", "private", "dtype"),
    [
        ((), False, torch.float32),
        (("--private",), True, torch.float32),
        (("--half",), False, torch.float16),
        (("--half", "--private"), True, torch.float16),
    ],
)
@pytest.mark.parametrize(("kind", "model"), [("tokenizer", Tokenizer), ("generator", Generator)])
def test_a_model_is_uploaded_as_asked(tiny: Path, monkeypatch, kind: str, model: type, words: tuple, private, dtype):
    asked = []

    def push(self, name: str, **settings) -> str:
        asked.append((type(self).__mro__, self.fingerprint, name, settings))
        return f"https://huggingface.co/{name}"

    monkeypatch.setattr(model, "push_to_hub", push)
    code, out, err = softvq("push", tiny / kind, "me/mine", *words)
    assert (code, err) == (0, "")
    address = "https://huggingface.co/me/mine"
    assert out == f'uploaded to {address}; {model.__name__}.from_pretrained("me/mine") loads it\n'
    told = {"model": str(tiny / kind), "name": "me/mine", "address": address}
    assert result("push", *words, tiny / kind, "me/mine") == told
    first, second = asked
    assert first == second
    assert model in first[0]
    assert first[1:] == (
        model.from_pretrained(tiny / kind).fingerprint,
        "me/mine",
        {"private": private, "dtype": dtype},
    )


def test_refusals_are_sentences(tiny: Path, monkeypatch):
    assert "is not a hub name; write owner/name" in refusal(1, "push", tiny / "tokenizer", "mine")
    assert "there is no model folder 'nowhere'" in refusal(1, "push", "nowhere", "me/mine")

    def refused(self, name: str, **settings) -> str:
        raise ModelError("you are not signed in.")

    monkeypatch.setattr(Tokenizer, "push_to_hub", refused)
    assert refusal(1, "push", tiny / "tokenizer", "me/mine") == "you are not signed in."


def test_another_programs_autoencoder_is_not_shared(tiny: Path, monkeypatch):
    monkeypatch.setattr("softvq.models.open_model", lambda name: object())
    assert refusal(2, "push", "diffusers:x", "me/mine") == "diffusers:x is not softvq's to share."
