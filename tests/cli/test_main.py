"""The `softvq` command as a whole: help, what is misunderstood, errors as sentences, exit codes, quiet and JSON."""

import inspect
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from softvq import __version__, errors, plugins
from softvq.cli import main as command_line
from softvq.cli import train
from softvq.cli.main import COMMANDS, app, exit_code_of, main, sentence
from softvq.recipes import all as recipes
from softvq.recipes.opening import is_file, open_recipe
from tests.cli.running import refusal, result, softvq
from tests.sessions import ROOT, environment

WORDS = [words for group in COMMANDS.values() for words in group]
WORK = {"encode", "decode", "demo", "latents", "probe", "reconstruct", "sample", "statistics"}  # run networks, and:
WORK |= {words for words in WORDS if words.split()[0] in ("train", "evaluate", "bench")}


def function(words: str) -> Any:
    """What a command calls."""
    found = app()
    for word in words.split():
        found = found[word]
    return found.default_command


def options(words: str) -> set[str]:
    """A command's options and other words, as `--help` names them."""
    found = app()
    for word in words.split():
        found = found[word]
    return {argument.names[0] for argument in found.assemble_argument_collection()} - {"*"}


# ---- Help


PAGES = [
    ["--help"],
    ["-h"],
    [],
    ["train", "--help"],
    ["evaluate"],
    ["bench", "-h"],
    *([*w.split(), "--help"] for w in WORDS),
]


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    """All help pages, printed by one new process, which also says what it has imported."""
    code = (
        "import io, json, sys\n"
        "from contextlib import redirect_stdout\n"
        "from softvq.cli.main import main\n"
        "pages = {}\n"
        "for words in json.load(sys.stdin):\n"
        "    with redirect_stdout(io.StringIO()) as out:\n"
        "        assert main(words) == 0, words\n"
        "    pages[' '.join(words)] = out.getvalue()\n"
        "heavy = [name for name in ('torch', 'numpy', 'PIL', 'matplotlib') if name in sys.modules]\n"
        "print(json.dumps({'pages': pages, 'heavy': heavy}))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps(PAGES),
        capture_output=True,
        text=True,
        env=environment(COLUMNS="150"),
    )
    assert run.returncode == 0, run.stderr
    told = json.loads(run.stdout)
    assert told["heavy"] == []
    return told["pages"]


def test_help_imports_nothing_heavy_and_names_every_command(pages: dict[str, str]):
    whole = pages["--help"]
    assert whole == pages["-h"] == pages[""]
    for title, commands in COMMANDS.items():
        assert title in whole
        for words in commands:
            assert re.search(rf"^│ {words.split()[0]}\b", whole, re.MULTILINE), words
    for words in ("train tokenizer", "train generator", "evaluate generation", "bench cost"):
        first, last = words.split()
        page = pages.get(f"{first} --help") or pages.get(first) or pages[f"{first} -h"]
        assert re.search(rf"^│ {last}\b", page, re.MULTILINE), words


@pytest.mark.parametrize("words", WORDS)
def test_a_commands_help_explains_every_option_and_shows_its_use(pages: dict[str, str], words: str):
    page = pages[f"{words} --help"]
    names = options(words)
    assert len(names) > 3
    for name in names:
        explained = re.search(rf"^│ +\*? *{name}\b.*?  +(\S.*)│$", page, re.MULTILINE)
        assert explained, name
    assert f"softvq {words}" in page
    assert inspect.getdoc(function(words)).splitlines()[0].replace("`", "")[:70] in page


@pytest.mark.parametrize("words", WORDS)
def test_only_commands_that_run_networks_are_told_where(words: str):
    names = options(words)
    assert {"--json", "--quiet", "--plugin"} <= names
    assert ("--device" in names) == ("--precision" in names) == (words in WORK)


def examples(text: str) -> Iterator[list[str]]:
    """The commands in a text: lines of fenced blocks, and calls by torchrun, without what is said beside them."""
    fenced = False
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        line = line.strip()
        if line.startswith("```"):
            fenced = not fenced
        if line.startswith("torchrun ") or (fenced and re.match(r"(\.venv/bin/)?softvq ", line)):
            line = re.split(r"   +| > ", line)[0]
            words = shlex.split(line, comments=True)
            yield words[words.index("softvq" if "softvq" in words else ".venv/bin/softvq") + 1 :]


def parse(words: list[str]) -> str:
    """Return the module of a command; fail where it would not be understood, or a recipe's fields are not there."""
    if words == ["--version"]:
        return words[0]
    command, bound, _ = app().parse_args(words, exit_on_error=False, print_error=False)
    assert "--help" in words or command.__module__ == f"softvq.cli.{words[0]}"
    if command in (train.tokenizer, train.generator):
        named, fields = train.recipe_and_fields(bound.args)
        if not is_file(named) and "--plugin" not in words:
            open_recipe(named, command.__name__, fields)
    return words[0]


@pytest.mark.parametrize("words", WORDS)
def test_every_example_of_a_commands_help_is_understood(words: str):
    found = list(examples(inspect.getdoc(function(words))))
    assert words == "demo" or any(" ".join(line).startswith(words) for line in found)
    for line in found:
        parse(line)


@pytest.mark.parametrize(
    "path", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda path: path.name
)
def test_every_command_of_a_document_is_understood(path: Path):
    lines = list(examples(path.read_text(encoding="utf-8")))
    assert [parse(line) for line in lines] == [line[0] for line in lines]
    assert lines or path.name in ("README.md", "deviations.md", "house.md"), "a document without a command"


def test_the_commands_in_the_readmes_sentences_are_understood():
    """Those that are whole: of three words or more, none of them a placeholder."""
    spans = re.findall(r"`softvq ([a-z][^`]*)`", (ROOT / "README.md").read_text(encoding="utf-8"))
    whole = [shlex.split(span) for span in spans if len(span.split()) > 1 and "COMMAND" not in span]
    assert len(whole) > 6
    assert [parse(line) for line in whole] == [line[0] for line in whole]


def test_examples_are_found():
    text = (
        "`softvq no` is prose.\n```\nsoftvq demo   # a comment\n"
        ".venv/bin/softvq train tokenizer emoji-64 \\\n  --steps 3\nsoftvq recipes emoji-64 > mine.yaml\nls\n```\n"
        "softvq outside\ntorchrun --nproc-per-node 8 -m softvq encode emoji"
    )
    assert list(examples(text)) == [
        ["demo"],
        ["train", "tokenizer", "emoji-64", "--steps", "3"],
        ["recipes", "emoji-64"],
        ["encode", "emoji"],
    ]
    with pytest.raises(errors.ConfigError):
        parse(["train", "tokenizer", "emoji-64", "--stepz", "3"])


def test_the_version_says_what_it_runs_on():
    import torch

    code, out, err = softvq("--version")
    assert (code, err) == (0, "")
    assert re.fullmatch(
        rf"softvq {__version__}, PyTorch {re.escape(torch.__version__)}, device (cpu|mps|cuda.*)\n", out
    )


# ---- The order of words


@pytest.mark.parametrize(
    ("before", "behind"),
    [
        ("reconstruct --num 3 --fit pad a.png b.png", "reconstruct a.png b.png --num 3 --fit pad"),
        ("reconstruct a.png --num 3 b.png --fit pad", "reconstruct a.png b.png --num 3 --fit pad"),
        ("encode --out x --shard 5 --json emoji", "encode emoji --out x --shard 5 --json"),
        ("decode --image a --image 3 --json x", "decode x --json --image a --image 3"),
        ("statistics --data emoji --num 5 runs/x", "statistics runs/x --data emoji --num 5"),
        ("push --private runs/x a/b", "push runs/x a/b --private"),
        ("recipes --json emoji-64", "recipes emoji-64 --json"),
        ("report --out r.md x", "report x --out r.md"),
        ("bench cost --steps 3 sit-xl-64 --no-time mar-h-64", "bench cost sit-xl-64 mar-h-64 --steps 3 --no-time"),
        ("sample -n 5 --class a --class b", "sample --class=a --class=b --num=5"),
        ("evaluate generation --interval 0 1 --guidance 1 2", "evaluate generation --guidance 1 2 --interval 0 1"),
    ],
)
def test_options_stand_before_or_behind_other_words(before: str, behind: str):
    one, other = (
        app().parse_args(shlex.split(text), exit_on_error=False, print_error=False) for text in (before, behind)
    )
    assert one[0] == other[0]
    assert one[1].arguments == other[1].arguments


@pytest.mark.parametrize(
    "text",
    [
        "emoji-64 --steps 3 --optimizer.lr 1e-3 --out runs/x --json",
        "--steps 3 --optimizer.lr 1e-3 emoji-64 --out runs/x --json",
        "--out runs/x --json --steps 3 --optimizer.lr 1e-3 emoji-64",
        "--json --steps=3 emoji-64 --out=runs/x --optimizer.lr=1e-3",
    ],
)
def test_a_runs_options_and_a_recipes_fields_stand_anywhere(text: str):
    words = ["train", "tokenizer", *shlex.split(text)]
    command, bound, _ = app().parse_args(words, exit_on_error=False, print_error=False)
    assert command is train.tokenizer
    assert train.recipe_and_fields(bound.args) == ("emoji-64", {"steps": "3", "optimizer.lr": "1e-3"})
    assert (bound.arguments["run"].out, bound.arguments["common"].json) == (Path("runs/x"), True)


# ---- What is misunderstood


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("recontruct", "there is no command 'recontruct'; did you mean reconstruct"),
        ("xyz", "there is no command 'xyz'; valid: demo, reconstruct, encode, decode, sample, train, recipes"),
        ("train tokeniser", "there is no command 'tokeniser'; did you mean tokenizer?"),
        ("bench speed", "there is no command 'speed'; valid: cost."),
        ("evaluate reconstructions", "there is no command 'reconstructions'; did you mean reconstruction?"),
        ("demo --trian", "unknown option --trian; did you mean --train?"),
        ("demo --zzzzzz", "unknown option --zzzzzz. softvq demo --help explains it."),
        ("sample --batch 3", "unknown option --batch; did you mean --batch-size?"),
        ("report --device cpu", "unknown option --device. softvq report"),
        ("push --precision float32 a b", "unknown option --precision"),
        ("recipes emoji-64 emoji-128", "'emoji-128' is one word too many"),
        ("reconstruct", "which images?"),
        ("encode emoji", "--out"),
        ("sample --num many", "--num"),
        ("sample --num 3.5", "--num"),
        ("sample --interval 1", "--interval"),
        ("sample --guidance 1 2", "'2' is one word too many. softvq sample --help explains it."),
        ("sample --labels even", 'Choose from: "balanced", "random"'),
        ("sample --class flgas", "there is no class 'flgas'; did you mean flags?"),
        ("sample --class zzzzzz", "there is no class 'zzzzzz'; valid: activities, animals-nature, flags"),
        ("recipes emoji-65", "no recipe 'emoji-65'; did you mean emoji-64"),
        ("train tokenizer", "which recipe? `softvq recipes` lists them"),
        ("train tokenizer emoji-64 --stpes 3", "unknown option --stpes; did you mean --steps"),
        ("train tokenizer emoji-64 --wokers 3", "unknown option --wokers; did you mean --workers"),
        ("train tokenizer emoji-64 --zzzzzz 3", "unknown option --zzzzzz; `softvq recipes emoji-64` lists them all"),
        ("train tokenizer emoji-64 --steps", "--steps needs a value"),
        ("train tokenizer emoji-64 --steps --seed 3", "--steps needs a value"),
        ("train tokenizer emoji-64 steps", "'steps' is one word too many"),
        ("train tokenizer emoji-64 --steps many", 'steps must be a whole number, not "many"'),
        ("train tokenizer emoji-64 --steps 3.5", "steps must be a whole number, not 3.5"),
        ("train tokenizer emoji-64 --tokenizer.tokens 63", "63 tokens cannot be split into the 4"),
        ("train tokenizer emoji-64 --optimizer.lr -1", "lr must be positive"),
        ("train tokenizer emoji-64 --log-every 0", "--log-every must be at least 1"),
        ("train tokenizer emoji-64 --precision float16", 'Choose from: "auto", "float32", "bfloat16"'),
        (
            "train generator emoji-64",
            "emoji-64 is the recipe of a tokenizer, not of a generator: `softvq train tokenizer`",
        ),
        (
            "train tokenizer emoji-sit",
            "emoji-sit is the recipe of a generator, not of a tokenizer: `softvq train generator`",
        ),
        ("train generator sit-xl-softvq-l-46", "did you mean sit-xl-softvq-l-64"),
        ("--device cpu demo", "--device stands before the command; write softvq COMMAND --device"),
        ("demo --steps 3", "--steps goes with --train"),
        ("train tokenizer emoji-64 --seed -1", "seed must not be negative"),
        ("train tokenizer softvq-l-64 --pretrained x", "--pretrained x: write NAME=FILE"),
        ("train tokenizer softvq-l-64 --alignment.teachr x", "did you mean --alignment.teacher"),
        ("train tokenizer emoji-64 --workers -1", "workers must be at least 0, not -1 (--workers)"),
        ("train tokenizer emoji-64 --augment.min-scale 0.001", "min_scale must be in [0.1, 1]"),
        ("train tokenizer emoji-64 --tokenizer.quantizer VQ", "leave kl out of the weights"),
        ("train tokenizer emoji-64 --resume --out nowhere", "--resume: nowhere holds no run to resume"),
        ("demo --device meta", "softvq runs on cpu, cuda and mps"),
        ("demo --device tpu", "the device 'tpu' cannot be used here"),
        ("reconstruct a.png --out a.txt", "a.txt: a picture is written as .png, .jpg, .jpeg, .webp (--out)"),
        ("statistics softvq-emoji-64 --data emoji", "is no finished model's folder to write to; name one (--out)"),
        ("sample --npz a.npz --separate", "leave --out and --separate out"),
        ("sample --npz a.npz --out b.png", "leave --out and --separate out"),
        ("decode x.safetensors -n 0", "num must be at least 1, not 0 (--num)"),
        ("decode x.safetensors -n 2 --image 3", "not both (--num)"),
    ],
)
def test_misunderstood_commands_say_what_to_do(tmp_path: Path, monkeypatch, arguments: str, message: str):
    monkeypatch.chdir(tmp_path)
    found = refusal(2, *shlex.split(arguments))
    assert message in found
    assert len(found) < 400
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "arguments",
    ["train tokenizer zzzzzz", "train generator zzzzzz", "recipes zzzzzz", "train tokenizer softvq-l-64 --zzzzzz 3"],
)
def test_of_nothing_that_is_near_no_list_of_hundreds_is_printed(arguments: str):
    found = refusal(2, *arguments.split())
    assert "did you mean" not in found
    assert re.search(r"`softvq recipes[^`]*` lists them all\.$", found)
    assert len(found) < 120


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("reconstruct missing.png", "missing.png does not exist"),
        ("reconstruct .", "holds no images"),
        ("reconstruct x.png --model nowhere", "no model folder 'nowhere'"),
        ("reconstruct x.png --model ./nowhere", "no model folder './nowhere'"),
        ("decode missing.safetensors", "missing.safetensors does not exist"),
        ("decode .", ". holds no latents (index.json is missing)"),
        ("encode nowhere --out latents", "no folder 'nowhere'"),
        ("train tokenizer emoji-64 --data nowhere", "no folder 'nowhere'"),
        ("train tokenizer softvq-l-64", "no folder 'imagenet/train'"),
        ("train generator emoji-sit --data nowhere", "'nowhere' holds no latents"),
        ("reconstruct x.png --model SoftVQVAE/softvq-l-64", "'SoftVQVAE/softvq-l-64' is no folder here"),
        ("push softvq-emoji-64 name-without-owner", "is not a hub name; write owner/name"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(tmp_path: Path, monkeypatch, arguments: str, message: str):
    monkeypatch.chdir(tmp_path)
    found, out, err = softvq(*arguments.split())
    assert (found, out) == (1, "")
    assert message in err.splitlines()[-1]  # training on own images first says that nothing is validated
    assert "Traceback" not in err


# ---- Errors and exit codes


@pytest.mark.parametrize(
    ("error", "printed", "code"),
    [
        (errors.DataError("there is no folder."), "there is no folder.", 1),
        (errors.ConfigError("use another folder.", setting="out"), "use another folder (--out).", 2),
        (errors.TrainingError("too many", setting="most_bad"), "too many (--most-bad).", 1),
        (errors.Interrupted(15, "stopped."), "stopped.", 143),
        (errors.StorageError("there is no room."), "there is no room.", 1),
        (PermissionError(13, "Permission denied", "folder/x"), "folder/x: Permission denied.", 1),
    ],
)
def test_what_the_command_line_prints(monkeypatch, error: Exception, printed: str, code: int):
    assert (sentence(error), exit_code_of(error)) == (printed, code)

    def fails(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(recipes, "listing", fails)
    assert refusal(code, "recipes") == printed


def test_a_bug_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr(recipes, "listing", lambda: {}["x"])
    with pytest.raises(KeyError):
        softvq("recipes")


def test_a_stopped_command_says_so(monkeypatch):
    def stopped() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(recipes, "listing", stopped)
    assert refusal(130, "recipes") == "stopped."


def test_a_reader_that_stops_reading_is_no_error(monkeypatch, capsys):
    """`softvq recipes | head -n 1`."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as gone:
        monkeypatch.setattr(sys, "stdout", gone)
        assert main(["recipes", "emoji-64"]) == 1
    assert capsys.readouterr().err == ""


def test_a_notice_of_the_library_is_a_sentence_and_not_of_the_result(monkeypatch):
    import warnings

    listing = recipes.listing

    def noticed() -> dict[str, Any]:
        warnings.warn("look out.", errors.Notice)
        return listing()

    monkeypatch.setattr(recipes, "listing", noticed)
    code, out, err = softvq("recipes", "--json")
    assert (code, err) == (0, "softvq: look out.\n")
    assert json.loads(out)


def test_plugins_are_loaded_before_the_command(tmp_path: Path, monkeypatch):
    seen = []
    monkeypatch.setattr(plugins, "load", lambda file: seen.append(file))
    assert softvq("recipes", "emoji-64", "--plugin", "a.py", "--plugin", "b.py")[0] == 0
    assert seen == [Path("a.py"), Path("b.py")]


def test_the_first_of_several_processes_prints(monkeypatch):
    from softvq import distributed

    for rank, expected in ((0, True), (1, False)):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        code, out, err = softvq("recipes", "emoji-64")
        assert (code, bool(out), err) == (0, expected, "")


def test_json_is_one_object_and_text_is_not():
    assert result("recipes", "emoji-64")["name"] == "emoji-64"
    with pytest.raises(json.JSONDecodeError):
        json.loads(softvq("recipes", "emoji-64")[1])


def test_the_module_and_the_script_run_it(monkeypatch):
    run = subprocess.run(
        [sys.executable, "-m", "softvq", "demo", "--trian"], capture_output=True, text=True, env=environment()
    )
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr == "softvq: unknown option --trian; did you mean --train? softvq demo --help explains it.\n"
    monkeypatch.setattr(sys, "argv", ["softvq", "recipes", "emoji-64"])
    with pytest.raises(SystemExit) as stop:
        command_line.entry()
    assert stop.value.code == 0
