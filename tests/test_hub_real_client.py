"""Models from and to a hub with the real `huggingface_hub` client: `tests.hub_server` answers it on the loopback.

The client reads its environment at import, so what it does runs in processes of their own, with a home of their own.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from huggingface_hub import ModelCard

from softvq import Tokenizer
from softvq.generators.sit import SiTConfig
from softvq.generators.transformer import TransformerConfig
from softvq.layers import ViTConfig
from softvq.quantizers.soft import SoftVQConfig
from softvq.tokenizer import TokenizerConfig
from tests.hub_server import Hub

ROOT = Path(__file__).resolve().parents[1]
VIT = ViTConfig(width=32, depth=1, heads=2, patch_size=8)
CHUNK = 10 * 2**20  # what the client writes at a time: from where it resumes

# What a child runs: pieces of code, each a line on standard input. `tell` gives the parent a value, `told` what a call
# says, its value or its ModelError; an empty line ends the answer to a piece.
CHILD = """
import json, re, sys
from pathlib import Path
from softvq import Generator, Tokenizer
from softvq.errors import ModelError

def tell(value):
    print(json.dumps(value))

def told(call):
    try:
        tell(f"no error but {call()}")
    except ModelError as error:
        tell(str(error))

for line in sys.stdin:
    exec(json.loads(line), globals())
    print(flush=True)
"""


class Child:
    """A Python process with the library imported, which runs code when it is called with it."""

    def __init__(self, folder: Path, environment: dict[str, str], log: Path):
        self.log = log
        with log.open("wb") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-c", CHILD],
                env=environment,
                cwd=folder,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                encoding="utf-8",
            )
        self.alarm = threading.Timer(120, self.process.kill)
        self.alarm.start()

    def __call__(self, code: str) -> list[Any]:
        """Run code and return what it told."""
        print(json.dumps(code), file=self.process.stdin, flush=True)
        told = []
        for line in self.process.stdout:
            if not line.strip():
                return told
            told.append(json.loads(line))
        raise AssertionError(self.stderr)

    @property
    def stderr(self) -> str:
        """What it has written on standard error."""
        return self.log.read_text("utf-8")

    def stop(self) -> None:
        """End the process."""
        self.alarm.cancel()
        self.process.kill()
        self.process.communicate()


class Model(NamedTuple):
    """A model folder, and the fingerprint of the model in it."""

    folder: Path
    fingerprint: str

    @property
    def files(self) -> dict[str, bytes]:
        """What the folder holds."""
        return {path.name: path.read_bytes() for path in self.folder.iterdir()}


Start = Callable[..., Child]


def saved(model: torch.nn.Module, folder: Path) -> Model:
    model.save_pretrained(folder)
    return Model(folder, model.fingerprint)


def new_tokenizer(folder: Path, seed: int, codebook_size: int = 16) -> Model:
    torch.manual_seed(seed)
    quantizer = SoftVQConfig(codebook_size)
    return saved(Tokenizer(TokenizerConfig(32, 4, 4, encoder=VIT, decoder=VIT, quantizer=quantizer)), folder)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Model:
    return new_tokenizer(tmp_path_factory.mktemp("models") / "tokenizer", 1)


@pytest.fixture(scope="module")
def other(tmp_path_factory) -> Model:
    return new_tokenizer(tmp_path_factory.mktemp("models") / "other", 2)


@pytest.fixture(scope="module")
def generator(tmp_path_factory) -> Model:
    network = TransformerConfig(tokens=4, channels=4, classes=3, width=32, depth=1, heads=2)
    return saved(SiTConfig(network).build(), tmp_path_factory.mktemp("models") / "generator")


@pytest.fixture
def hub():
    with Hub() as hub:
        yield hub


@pytest.fixture
def start(hub: Hub, tmp_path: Path):
    """Starts children that take `hub` for the hub and `tmp_path/home` for their home."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
    own = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": "hf_test", "HF_HUB_DISABLE_XET": "1"}
    same = {"PYTHONPATH": str(ROOT), "NO_PROXY": "*", "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"}
    children: list[Child] = []

    def start(**environment: str) -> Child:
        log = tmp_path / f"stderr-{len(children)}"
        children.append(Child(tmp_path, {**kept, **own, **same, **environment}, log))
        return children[-1]

    yield start
    for child in children:
        child.stop()


def check_sentence(text: str, *parts: str) -> None:
    """Assert that a message is one sentence on one line that has a match for each of these patterns."""
    assert "\n" not in text, text
    assert text.endswith("."), text
    for part in parts:
        assert re.search(part, text), f"{part!r} is not in {text!r}"


NO_ANSWER = r"cannot be reached|OFFLINE|downloaded before"
LOAD = "tell(Tokenizer.from_pretrained('me/model').fingerprint)"


def test_a_model_is_downloaded_once_and_then_needs_no_hub(hub: Hub, start: Start, tokenizer: Model):
    hub.add("me/model", {**tokenizer.files, "notes.bin": b"not the model's"})
    child = start()
    assert child(LOAD) == [tokenizer.fingerprint]
    assert re.search(r"\d+%\|", child.stderr)  # a progress bar
    downloaded = {Path(path).name for method, path in hub.asked("/resolve/") if method == "GET"}
    assert {"config.json", "model.safetensors"} <= downloaded
    assert "notes.bin" not in downloaded

    hub.requests.clear()
    assert child(LOAD) == [tokenizer.fingerprint]
    assert not hub.asked("/resolve/")
    hub.fail_with = 500
    assert child(LOAD) == [tokenizer.fingerprint]

    hub.requests.clear()
    child = start(HF_HUB_OFFLINE="1")
    assert child(LOAD) == [tokenizer.fingerprint]
    [missing] = child("told(lambda: Tokenizer.from_pretrained('me/other'))")
    check_sentence(missing, "me/other", "HF_HUB_OFFLINE")
    assert not hub.requests

    hub.stop()
    child = start()
    assert child(LOAD) == [tokenizer.fingerprint]
    [missing] = child("told(lambda: Tokenizer.from_pretrained('me/other'))")
    check_sentence(missing, "me/other", "cannot be reached")


def test_revisions_and_cache_dir(
    hub: Hub, start: Start, tmp_path: Path, tokenizer: Model, other: Model, generator: Model
):
    sha = hub.add("me/model", tokenizer.files, "v1")
    hub.add("me/model", other.files)
    hub.add("me/generator", generator.files, "v1")
    told = start()(f"""
cache = Path("cache").resolve()
tell(Tokenizer.from_pretrained("me/model", cache_dir=cache).fingerprint)
tell(Tokenizer.from_pretrained("me/model", revision="v1", cache_dir=cache).fingerprint)
tell(Tokenizer.from_pretrained("me/model@v1", cache_dir=str(cache)).fingerprint)
tell(Tokenizer.from_pretrained("me/model", revision="{sha}", cache_dir=cache).fingerprint)
tell(Generator.from_pretrained("me/generator", revision="v1", cache_dir=cache).fingerprint)
tell(Generator.from_pretrained("me/generator@v1", cache_dir=cache).fingerprint)
""")
    v1, main = tokenizer.fingerprint, other.fingerprint
    assert v1 != main
    assert told == [main, v1, v1, v1, generator.fingerprint, generator.fingerprint]
    repositories = sorted(path.parts[-4] for path in (tmp_path / "cache").rglob("model.safetensors"))
    assert repositories == ["models--me--generator", "models--me--model", "models--me--model"]
    assert not list((tmp_path / "home").rglob("*.safetensors"))


def test_the_reason_of_a_failure_is_said(hub: Hub, start: Start, tokenizer: Model, generator: Model):
    hub.add("me/model", tokenizer.files)
    hub.add("me/config", {"config.json": tokenizer.files["config.json"]})
    hub.add("me/generator", generator.files)
    child = start()
    told = child("""
told(lambda: Tokenizer.from_pretrained("me/nothing"))
told(lambda: Generator.from_pretrained("me/nothing"))
told(lambda: Tokenizer.from_pretrained("me/model", revision="v9"))
told(lambda: Tokenizer.from_pretrained("me/model@v9"))
told(lambda: Tokenizer.from_pretrained("me/model@v1", revision="v2"))
told(lambda: Tokenizer.from_pretrained("me/config"))
told(lambda: Tokenizer.from_pretrained("me/generator"))
# and errors of the client itself
Path("file").touch()
told(lambda: Tokenizer.from_pretrained("me/model", cache_dir=Path("file")))
told(lambda: Tokenizer.from_pretrained("me/mo--del"))
""")
    reasons = [
        *(["me/nothing", "no such repository"], ["me/nothing", "no such repository"]),
        *(["me/model", "no revision 'v9'"], ["me/model", "no revision 'v9'"], ["v1", "v2"]),
        *(["me/config", r"holds no model\.safetensors"], ["generator", "tokenizer"]),
        *(["me/model", "file"], ["me/mo--del"]),
    ]
    for text, parts in zip(told, reasons, strict=True):
        check_sentence(text, *parts)
        assert not re.search(NO_ANSWER, text), text

    for status in (500, 403):  # the hub's errors are answers too
        hub.fail_with = status
        load, push = child(f"""
told(lambda: Tokenizer.from_pretrained("me/model"))
told(lambda: Tokenizer.from_pretrained({str(tokenizer.folder)!r}).push_to_hub("me/new"))
""")
        check_sentence(load, "me/model", str(status))
        check_sentence(push, "me/new", str(status))
        assert not re.search(NO_ANSWER, load + push)


def test_a_download_that_breaks_off_goes_on(hub: Hub, start: Start, tmp_path: Path, tokenizer: Model):
    """Less than a chunk is fetched again; more is resumed behind the last whole chunk."""
    large = new_tokenizer(tmp_path / "large", 3, codebook_size=700_000)
    hub.add("me/model", tokenizer.files)
    hub.add("me/large", large.files)
    child = start()
    for model, name, after, ranges in (
        (tokenizer, "me/model", 5_000, []),
        (large, "me/large", CHUNK + 5_000, [f"bytes={CHUNK}-"]),
    ):
        hub.break_after = after
        assert child(f"tell(Tokenizer.from_pretrained('{name}').fingerprint)") == [model.fingerprint]
        assert hub.break_after is None  # it did break off
        assert [method for method, _ in hub.asked(f"{name}/resolve/{hub.sha(name)}/model.safetensors")] == [
            *("HEAD", "GET", "GET")
        ]
        assert hub.ranges == ranges


def test_a_damaged_file_is_named_and_downloaded_again_once_deleted(
    hub: Hub, start: Start, tmp_path: Path, tokenizer: Model
):
    whole = tokenizer.files["model.safetensors"]
    header = 8 + int.from_bytes(whole[:8], "little")
    damaged = {
        "truncated": whole[: header + 100],
        "half-a-header": whole[: header - 10],
        "too-long-a-header": b"\xff" * 8 + whole[8:],
        "empty": b"",
    }
    child = start()
    for name, content in damaged.items():
        hub.add(f"me/{name}", {**tokenizer.files, "model.safetensors": content})
        [text] = child(f"told(lambda: Tokenizer.from_pretrained('me/{name}'))")
        check_sentence(text, r"model\.safetensors", "delete .*download")

    hub.add("me/model", tokenizer.files)
    assert child(LOAD) == [tokenizer.fingerprint]
    for name, kept in (("model.safetensors", header + 100), ("config.json", 20)):
        told = child(f"""
file = next(Path("home/hub/models--me--model/snapshots").rglob("{name}"))
with file.open("r+b") as opened:
    opened.truncate({kept})
told(lambda: Tokenizer.from_pretrained("me/model"))
""")
        check_sentence(told[0], name.replace(".", r"\."), "delete .*download")
        named = {Path(path) for path in re.findall(r"/[^\s,;:()]*[^\s,;:().]", told[0])}
        for path in named:  # follow the advice
            if path.is_relative_to(tmp_path / "home" / "hub" / "models--me--model"):
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        assert child(LOAD) == [tokenizer.fingerprint], f"after {named} were deleted"


def test_what_is_pushed_is_loaded_by_name(hub: Hub, start: Start, tokenizer: Model, generator: Model, other: Model):
    told = start()(f"""
tokenizer = Tokenizer.from_pretrained({str(tokenizer.folder)!r})
tell(tokenizer.push_to_hub("me/tokenizer"))
tell(tokenizer.push_to_hub("me/tokenizer"))
tell(Generator.from_pretrained({str(generator.folder)!r}).push_to_hub("me/generator"))
""")
    assert told == [f"{hub.url}/me/tokenizer", f"{hub.url}/me/tokenizer", f"{hub.url}/me/generator"]
    for name in ("me/tokenizer", "me/generator"):
        files = hub.files(name)
        assert files.keys() == {"config.json", "model.safetensors", "README.md"}
        card = ModelCard(files["README.md"].decode())
        assert card.data.library_name == "softvq"
        assert f'from_pretrained("{name}")' in card.text

    child = start()
    told = child("""
loaded = Tokenizer.from_pretrained("me/tokenizer"), Generator.from_pretrained("me/generator")
for model, name in zip(loaded, ("t", "g")):
    tell(model.fingerprint)
    model.save_pretrained(name)
    tell(type(model).from_pretrained(name).fingerprint)
""")
    assert told == [tokenizer.fingerprint] * 2 + [generator.fingerprint] * 2
    told = child(f"""
Tokenizer.from_pretrained({str(other.folder)!r}).push_to_hub("me/tokenizer")  # over the first
tell(Tokenizer.from_pretrained("me/tokenizer").fingerprint)
""")
    assert told == [other.fingerprint]
