"""Reports: what is comparable shares a table, the paper stands beside it, and what cannot be shown is named."""

import json
import math
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from PIL import Image
from torch import nn

from softvq.errors import ConfigError, MetricError, SoftVQError, StorageError
from softvq.evaluation import report as reports
from softvq.evaluation.report import Report
from softvq.evaluation.results import Protocol, Result
from softvq.pretrained import inception
from softvq.pretrained.features import FeatureNetwork

PAPERS = Protocol(
    images=50_000,
    size=256,
    crop="none",
    **FeatureNetwork(inception.NAME, nn.Identity(), inception.SIDE, 2048, "tf1").protocol,
    reference="VIRTUAL_imagenet256_labeled.npz",
    reference_checksum="0123456789abcdef",
    reference_images=10_000,
    precision="float32",
)
MARK = "Not the paper's protocol"


def write(folder: Path, name: str, kind: str, **result: Any) -> Path:
    """As the commands do; gives the file."""
    own = {part: result.pop(part, {}) for part in ("model", "protocol", "scores")}
    return Path(Result(kind, name, **own, more=result).write(folder)["file"])


def reconstruction(folder: Path, name: str, protocol: Protocol = PAPERS, **more: Any) -> Path:
    told = {"model": {"name": name, "recipe": None}, "tokens": 64, "scores": {"rfid": 0.614, "reliable": True}}
    told |= {"protocol": protocol.to_dict(), **more}
    return write(folder, f"reconstruction-{Path(name).name}", "reconstruction", **told)


def generation(folder: Path, name: str, protocol=PAPERS, *, recipe=None, steps=None, guidance=1.0, **more) -> Path:
    told = {
        "model": {"name": name, "recipe": recipe, "steps": steps},
        "protocol": protocol.to_dict(),
        "sampling": {"sampler": "dpm", "steps": 50, "guidance": guidance},
        "scores": {"gfid": 6.123, "inception_score": 149.96, "precision": 0.731, "recall": 0.6, "reliable": True},
    }
    return write(folder, f"generation-{Path(name).name}", "generation", **told | more)


def probe(folder: Path, name: str, top1: float, recipe: str | None = None, **more: Any) -> Path:
    protocol = {"data": "imagenet/train", "val": "imagenet/val", "images": 1000, "pool": "flatten", **more}
    model = {"name": name, "recipe": recipe}
    stem = f"probe-{Path(name).name}-{more.get('layer')}"
    return write(folder, stem, "probe", model=model, protocol=protocol, scores={"probe_top1": top1, "knn_top1": 0.5})


def cost(folder: Path, name: str = "cost", **rows: dict[str, Any]) -> Path:
    protocol = {"device": "cpu, 1 threads", "torch": "2.13", "precision": "float32", "batch": 4, "steps": 50}
    return write(folder, name, "cost", protocol={**protocol, "guidance": 1.75, "timed": True}, rows=rows)


def changed(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    result = json.loads(path.read_text())
    change(result)
    path.write_text(json.dumps(result))


def without(part: str, *name: str) -> Callable[[dict[str, Any]], Any]:
    return lambda result: result[part].pop(*name) if name else result.pop(part)


def told(folder: Path, out: Path | None = None) -> tuple[Report, str]:
    """What is told, and the file."""
    made = reports.report(folder, out)
    return made, made.file.read_text(encoding="utf-8")


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def tables(text: str) -> list[list[dict[str, str]]]:
    """Each as rows by column."""
    found = []
    for block in re.findall(r"(?:^\|.*\n?)+", text, re.MULTILINE):
        head, rule, *rows = block.splitlines()
        assert set(rule) <= set("|-")
        assert {len(cells(line)) for line in (rule, *rows)} == {len(cells(head))}
        found.append([dict(zip(cells(head), cells(row), strict=True)) for row in rows])
    return found


def table(folder: Path) -> list[dict[str, str]]:
    (found,) = tables(told(folder)[1])
    return found


def test_figures_of_one_protocol_share_a_table_and_others_have_their_own(tmp_path: Path):
    """A reference's name is no part of what was measured."""
    reconstruction(tmp_path, "runs/one")
    reconstruction(tmp_path, "runs/two", replace(PAPERS, reference="/data/ILSVRC/val"))
    others = {
        **{"images": 5000, "size": 512, "crop": "ADM's centre crop", "features": "lite", "weights": "ff"},
        **{"resizing": "clean", "reference_checksum": "ff", "reference_images": 5, "precision": "bfloat16"},
    }
    for field, value in others.items():
        reconstruction(tmp_path, f"runs/{field}", replace(PAPERS, **{field: value}))
    names = [[row["tokenizer"] for row in rows] for rows in tables(told(tmp_path)[1])]
    assert ["`one`", "`two`"] in names
    assert sorted(map(len, names)) == [1] * len(others) + [2]


def test_kinds_have_their_sections_and_rows_the_order_of_their_files(tmp_path: Path):
    cost(tmp_path, a={"about": "a row"})
    probe(tmp_path, "x", 0.5)
    for name in ("b", "c", "a"):
        generation(tmp_path / "deeper" / name, name)
    reconstruction(tmp_path, "x")
    found, text = told(tmp_path)
    assert found.results == 6
    heads = [line.split()[1] for line in text.splitlines() if line.startswith("## ")]
    assert heads == ["Reconstruction", "Generation", "Linear", "Cost"]
    assert [row["model"] for row in tables(text)[1]] == ["`a`", "`b`", "`c`"]
    assert found.file == tmp_path / "report.md"


def test_scores_are_rounded_and_columns_without_one_left_out(tmp_path: Path):
    scores = {"rfid": 0.616, "psnr": 29.714, "ssim": 0.91654, "codebook_usage": 0.0, "lpips": None}
    reconstruction(tmp_path, "runs/one", scores=scores)
    rounded = {"rFID": "0.62", "PSNR dB": "29.71", "SSIM": "0.9165", "codebook usage": "0.000"}
    assert table(tmp_path) == [{"tokenizer": "`one`", "tokens": "64", **rounded}]


@pytest.mark.parametrize(
    ("name", "recipe", "published"),
    [
        ("runs/mine", "softvq-l-64", ("Table 1: SoftVQ-L", "0.61")),
        ("SoftVQVAE/softvq-bl-64-512", None, ("Table 2: SoftVQ-BL", "0.71")),
        ("runs/mine", "softvq-l-64-tiny", None),
        ("softvq-emoji-64", "emoji-64", None),
        ("runs/softvq-l-64", "emoji-64", None),
        ("runs/mine", None, None),
    ],
)
def test_a_tokenizers_published_rfid_stands_beside_its_own(tmp_path: Path, name, recipe, published):
    reconstruction(tmp_path, name, model={"name": name, "recipe": recipe})
    (row,) = table(tmp_path)
    assert row["rFID"] == "0.61"
    assert (row.get("row of the paper"), row.get("rFID, paper")) == (published or (None, None))


SIT = "SoftVQVAE/sit-xl_softvq-l-64"


@pytest.mark.parametrize(
    ("name", "recipe", "steps", "guidance", "published"),
    [
        ("runs/mine", "sit-xl-softvq-l-64", 3_000_000, 1.0, ("5.35", "151.2", "0.74", "0.64")),
        ("runs/mine", "sit-xl-softvq-l-64", 3_000_000, 1.75, ("1.86", "293.6", "0.81", "0.63")),
        (SIT, None, None, 1.0, ("5.35", "151.2", "0.74", "0.64")),
        (SIT, None, None, 1.75, ("1.86", "293.6", "0.81", "0.63")),
        ("runs/mine", "sit-xl-softvq-l-64", 400_000, 1.0, ("10.03", "103.4", "0.71", "0.62")),
        ("runs/mine", "sit-xl-softvq-l-32", 1_000_000, 2.25, ("2.85", "284.0", "0.76", "0.61")),
        ("runs/mine", "mar-h-softvq-bl-64", 312_500, 3.0, ("1.93", "289.4", "0.80", "0.61")),
        ("runs/mine", "sit-l-vq-s-32", 400_000, 1.0, ("21.57", "47.6", None, None)),
        ("runs/mine", "sit-xl-softvq-l-64", 3_000_000, 2.25, None),  # guided, but not as the paper's row
        ("runs/mine", "sit-xl-softvq-l-32", 3_000_000, 1.75, None),
        ("runs/mine", "sit-l-vq-s-32", 400_000, 1.5, None),  # published without guidance alone
        ("runs/mine", "sit-xl-softvq-l-64", 500_000, 1.0, None),  # steps that are in no table
        ("runs/mine", "sit-xl-softvq-l-64-tiny", 20, 1.0, None),
        ("emoji-sit", "emoji-sit", 4000, 3.5, None),
        ("runs/mine", None, None, 1.0, None),
    ],
)
def test_a_generators_published_figures_stand_beside_its_own(tmp_path, name, recipe, steps, guidance, published):
    generation(tmp_path, name, recipe=recipe, steps=steps, guidance=guidance)
    (row,) = table(tmp_path)
    titles = ("gFID", "IS", "precision", "recall")
    assert tuple(row.get(f"{title}, paper") for title in titles) == (published or (None,) * 4)
    assert [row[title] for title in titles] == ["6.12", "150.0", "0.73", "0.60"]
    assert (row["sampler"], row["guidance"]) == ("dpm, 50 steps", str(guidance))


def test_images_without_a_sampler_have_nothing_of_the_paper(tmp_path: Path):
    """Whether they were guided is not known."""
    changed(generation(tmp_path, SIT), without("sampling"))
    (row,) = table(tmp_path)
    assert set(row) == {"model", "gFID", "IS", "precision", "recall"}


def test_seeds_deviation_is_shown(tmp_path: Path):
    scores = {"gfid": 6.124, "gfid_over_seeds": 0.078, "inception_score": 150.04, "inception_score_over_seeds": 1.26}
    generation(tmp_path, "runs/mine", scores=scores)
    (row,) = table(tmp_path)
    assert (row["gFID"], row["IS"]) == ("6.12 ± 0.08", "150.0 ± 1.3")


@pytest.mark.parametrize(
    ("field", "value"), [("images", 5000), ("features", inception.TINY), ("resizing", "clean"), ("resizing", None)]
)
def test_another_protocol_than_the_papers_is_marked(tmp_path: Path, field: str, value: Any):
    for write_one in (reconstruction, generation):
        folder = tmp_path / write_one.__name__
        write_one(folder, "runs/a")
        assert MARK not in told(folder)[1]
        write_one(folder, "runs/b", replace(PAPERS, **{field: value}))
        lines = [line for line in told(folder)[1].splitlines() if "against" in line]
        assert [MARK in line for line in lines] == [False, True]


def test_latent_spaces_are_shown_with_the_pictures_beside_them(tmp_path: Path):
    protocol, pictures = {"data": "emoji", "images": 280, "seed": 0}, ["elsewhere/channels.png", "elsewhere/lost.png"]
    more = {"model": {"name": "runs/mine"}, "scores": {"cosine": 0.98765}, "pictures": pictures}
    path = write(tmp_path / "deep er", "latents", "latents", protocol=protocol, **more)
    path.with_name("channels.png").write_bytes(b"PNG")
    assert table(tmp_path) == [{"tokenizer": "`mine`", "data": "emoji", "images": "280", "cosine of ẑ and z": "0.988"}]
    assert links(told(tmp_path)[1], tmp_path / "report.md") == [path.with_name("channels.png")]


def test_what_a_table_rests_on_is_said_above_it(tmp_path: Path):
    reconstruction(tmp_path, "runs/mine", replace(PAPERS, images=1234, crop="ADM's centre crop"))
    (line,) = [line for line in told(tmp_path)[1].splitlines() if "against" in line]
    assert line.startswith("1,234 images of 256 px, ADM's centre crop, against VIRTUAL_imagenet256_labeled.npz ")
    for part in ("(0123456789abcdef, 10000 images)", PAPERS.features, PAPERS.weights, PAPERS.resizing, "; float32."):
        assert part in line


def test_too_few_images_are_marked(tmp_path: Path):
    for name, reliable in (("few", False), ("many", True)):
        generation(tmp_path, name, scores={"gfid": 1.0, "reliable": reliable})
        reconstruction(tmp_path, name, scores={"rfid": 1.0, "reliable": reliable})
    for rows in tables(told(tmp_path)[1]):
        assert [row[""] for row in rows] == ["few images", ""]


def test_probes_stand_beside_table_4(tmp_path: Path):
    probe(tmp_path, "runs/mine", 0.4189, "softvq-b-64")
    probe(tmp_path, "SoftVQVAE/softvq-b-64", 0.0)
    probe(tmp_path, "runs/sit", 0.5, "emoji-sit", layer=6, time=0.5)
    rows = {row["model"]: row for row in table(tmp_path)}
    assert (rows["`mine`"]["top 1 %"], rows["`mine`"]["top 1 %, paper"]) == ("41.89", "42.42")
    assert (rows["`softvq-b-64`"]["top 1 %"], rows["`softvq-b-64`"]["top 1 %, paper"]) == ("0.00", "42.42")
    assert (rows["`sit`"]["top 1 %, paper"], rows["`sit`"]["layer"], rows["`sit`"]["k-NN %"]) == ("", "6", "50.00")


def test_costs_stand_beside_tables_1_and_2(tmp_path: Path):
    row = {"about": "SiT-XL | 64", "parameters": 674.853, "gmacs": 28.77, "published_gmacs": 29.23}
    cost(tmp_path, **{"sit-xl-64": row, "kl-f8": {"about": "KL"}})
    first, second = table(tmp_path)
    shown = {"row": "`sit-xl-64`", "": r"SiT-XL \| 64", "M parameters": "674.9", "GMACs, paper": "29.23"}
    assert first == {**shown, "GMACs": "28.77"}
    assert second["GMACs"] == ""
    assert "cpu, 1 threads, PyTorch 2.13, float32; batch 4, 50 steps, guidance 1.75." in told(tmp_path)[1]


@pytest.mark.parametrize(
    ("write_one", "change", "reason"),
    [
        (reconstruction, without("scores"), "without scores"),
        (reconstruction, without("model"), "without model"),
        (reconstruction, without("model", "name"), "without name in its model"),
        (reconstruction, without("protocol"), "without protocol"),
        (reconstruction, without("protocol", "weights"), "'weights' is missing or unknown"),
        (reconstruction, lambda result: result.update(scores=3), "without scores"),
        (reconstruction, lambda result: result.update(scores={"rfid": "low"}), "whose scores are not numbers"),
        (reconstruction, without("kind"), "without a known kind"),
        (reconstruction, lambda result: result.update(kind="beauty"), "without a known kind"),
        (reconstruction, lambda result: result.update(kind=["probe"]), "without a known kind"),
        (generation, lambda result: result["protocol"].update(mood="good"), "'mood' is missing or unknown"),
        (generation, without("sampling", "guidance"), "without guidance in its sampling"),
        (lambda folder, name: probe(folder, name, 0.5), without("protocol", "pool"), "without pool in its protocol"),
        (lambda folder, name: cost(folder, name, a={}), without("rows"), "without rows"),
        (lambda folder, name: cost(folder, name, a={}), without("protocol", "device"), "without device"),
        (reconstruction, lambda result: result.update(softvq="latents"), "holds no result of an evaluation"),
    ],
)
def test_what_cannot_be_shown_is_left_out_and_named(tmp_path: Path, write_one, change, reason: str):
    path = write_one(tmp_path / "odd", "odd")
    changed(path, change)
    with pytest.raises(MetricError, match="holds no results of evaluations") as error:  # when there is nothing else
        told(tmp_path)
    assert all(words in str(error.value) for words in (str(path), reason))
    reconstruction(tmp_path, "runs/good")
    found, text = told(tmp_path)
    assert found.results == 1
    (one,) = found.left_out
    assert all(words in one for words in (str(path), reason))
    assert one in text
    assert [row["tokenizer"] for rows in tables(text) for row in rows] == ["`good`"]
    assert text.count("## ") == 1


@pytest.mark.parametrize("content", [b"", b'{"softvq": "evalu', b"\xff\xfe", b"[1, 2]", b'"evaluation"', b'{"a": 1}'])
def test_damaged_and_foreign_json_is_left_out_and_named(tmp_path: Path, content: bytes):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    reconstruction(tmp_path, "runs/good")
    found, text = told(tmp_path)
    (one,) = found.left_out
    assert one.startswith(str(path))
    assert one in text
    assert len(tables(text)) == found.results == 1


def test_no_results_are_a_sentence(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("{}")
    for folder, message in (
        ("empty", "empty holds no results of evaluations."),
        ("missing", "there is no folder missing."),
        ("file", "there is no folder file."),
        ("evaluations", "there is no folder evaluations."),
    ):
        with pytest.raises(SoftVQError) as error:
            told(Path(folder))
        assert str(error.value) == message
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["empty", "file"]


def links(text: str, out: Path) -> list[Path]:
    found = [unquote(link) for link in re.findall(r"!\[[^\]]*\]\(([^) ]*)\)", text)]
    assert not any(Path(link).is_absolute() for link in found)
    return [(out.parent / link).resolve() for link in found]


def test_sweeps_are_linked_wherever_the_folder_is(tmp_path: Path, monkeypatch):
    """A result says where its picture was, as seen from where the command ran; it is beside the result."""
    monkeypatch.chdir(tmp_path)
    there, _ = (
        generation(Path("my results"), name, pictures=[f"my results/generation-{name}.png"]) for name in ("a b", "lost")
    )
    there.with_suffix(".png").write_bytes(b"PNG")
    assert links(told(Path("my results"))[1], Path("my results/report.md")) == [there.with_suffix(".png").resolve()]
    shutil.move("my results", "moved")
    picture = Path("moved", there.name).with_suffix(".png").resolve()
    assert picture.is_file()
    for out in ("moved/report.md", "elsewhere/deep down/r.md"):
        assert links(told(Path("moved"), Path(out))[1], Path(out)) == [picture]


def some_of_each(folder: Path) -> None:
    reconstruction(folder, "runs/one")
    generation(folder, "runs/two")
    probe(folder, "runs/sit", 0.25, layer=6)
    probe(folder, "runs/sit", 0.5, layer=20)  # of one model: a bar each
    for number in (1, 2):
        speeds = {name: {"about": name, "images_per_second": number * 1.5} for name in ("x", "y")}
        cost(folder, f"cost-{number}", **speeds)


def test_figures_are_drawn_with_a_bar_each_and_linked(tmp_path: Path, monkeypatch):
    pytest.importorskip("matplotlib")
    drawn, render = [], reports.rendered

    def spied(figure) -> Image.Image:
        names, bars = figure.axes[0].get_yticklabels(), figure.axes[0].patches
        drawn.append({name.get_text(): bar.get_width() for name, bar in zip(names, bars, strict=True)})
        return render(figure)

    monkeypatch.setattr(reports, "rendered", spied)
    some_of_each(tmp_path / "in")
    out = tmp_path / "other place" / "my results.md"
    found, text = told(tmp_path / "in", out)
    assert drawn == [{"sit, layer 6": 0.25, "sit, layer 20": 0.5}, {"x": 1.5, "y": 1.5}, {"x": 3.0, "y": 3.0}]
    assert [path.resolve() for path in found.figures] == links(text, out)
    assert [path.name for path in links(text, out)] == [f"my results-{one}.png" for one in ("probe", "cost", "cost1")]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in links(text, out))
    assert not list((tmp_path / "in").glob("*.md"))


def test_twice_gives_the_same_bytes(tmp_path: Path):
    some_of_each(tmp_path)

    def files() -> dict[Path, bytes]:
        told(tmp_path)
        return {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    assert files() == files()


def test_without_matplotlib_there_are_tables(tmp_path: Path, monkeypatch):
    some_of_each(tmp_path)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    found, text = told(tmp_path)
    assert list(found.figures) == links(text, tmp_path / "report.md") == []
    assert [len(rows) for rows in tables(text)] == [1, 1, 2, 2, 2]


# ---- Rows that could be taken for one another


def made(folder: Path, file: str, write_one: Callable[..., Path], *words: Any, **more: Any) -> Path:
    """A result in a file of its own name."""
    path = write_one(folder / "new", *words, **more)
    return path.rename(folder / file)


def row_names(folder: Path) -> list[str]:
    return [next(iter(row.values())) for row in table(folder)]


def fingerprinted(fingerprint: str | None, name: str = "runs/model") -> dict[str, Any]:
    return {"name": name, "fingerprint": fingerprint, "recipe": None}


def test_models_of_one_name_are_told_apart_by_their_fingerprints(tmp_path: Path):
    """And only they; one whose fingerprint is not known has none beside it."""
    for number, fingerprint in enumerate(("0123456789abcdef", "fedcba9876543210", None)):
        name = f"runs/{number}/model"
        made(tmp_path, f"{number}.json", reconstruction, name, model=fingerprinted(fingerprint, name))
    made(tmp_path, "3.json", reconstruction, "alone", model=fingerprinted("0123456789abcdef", "alone"))
    assert row_names(tmp_path) == ["`model` (01234567)", "`model` (fedcba98)", "`model`", "`alone`"]


@pytest.mark.parametrize("fingerprint", ["0123456789abcdef", None])
def test_one_model_measured_twice_is_told_apart_by_the_files(tmp_path: Path, fingerprint: str | None):
    for file, rfid in (("a_b.json", 1.0), ("later/two.json", 2.0)):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        made(tmp_path, file, reconstruction, "m", model=fingerprinted(fingerprint), scores={"rfid": rfid})
    assert table(tmp_path) == [
        {"tokenizer": "`model` (a_b.json)", "tokens": "64", "rFID": "1.00"},
        {"tokenizer": "`model` (later/two.json)", "tokens": "64", "rFID": "2.00"},
    ]


def test_fingerprints_with_the_same_first_digits_are_told_apart_by_the_files(tmp_path: Path):
    for number, end in enumerate(("00000000", "11111111")):
        made(tmp_path, f"{number}.json", reconstruction, "m", model=fingerprinted(f"01234567{end}"))
    assert row_names(tmp_path) == ["`model` (0.json)", "`model` (1.json)"]


def test_rows_that_other_columns_tell_apart_have_the_name_alone(tmp_path: Path):
    for number, guidance in enumerate((1.0, 2.0, 3.0, 3.0)):
        scores = {"gfid": 5.0 + number}
        made(tmp_path, f"{number}.json", generation, "runs/model", guidance=guidance, scores=scores)
    assert row_names(tmp_path) == ["`model`", "`model`", "`model` (2.json)", "`model` (3.json)"]


def test_the_same_result_twice_is_one_row_and_said(tmp_path: Path):
    """Whenever and with whichever version it was made."""
    model = fingerprinted("0123456789abcdef")
    first, second = (made(tmp_path, f"{name}.json", reconstruction, "m", model=model) for name in "ab")
    changed(second, lambda result: result.update(date="2001-01-01", version="0.1"))
    found, text = told(tmp_path)
    assert row_names(tmp_path) == ["`model`"]
    assert found.results == 1
    assert found.left_out == (f"{second} holds the same result as {first}.",)
    assert "holds the same result as" in text
    changed(second, lambda result: result["scores"].update(rfid=0.7))
    assert told(tmp_path)[0].results == 2


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The names beside the bars of each figure."""
    pytest.importorskip("matplotlib")
    names: list[list[str]] = []
    render = reports.rendered

    def spied(figure) -> Image.Image:
        names.append([name.get_text() for name in figure.axes[0].get_yticklabels()])
        return render(figure)

    monkeypatch.setattr(reports, "rendered", spied)
    return names


def test_bars_of_one_name_are_told_apart(tmp_path: Path, drawn):
    for number, more in enumerate(
        ({"layer": 6, "time": 0.5}, {"layer": 6, "time": 0.25}, {"layer": 7, "time": 0.5}, {"data": "other"}, {}, {})
    ):
        made(tmp_path, f"{number}.json", probe, "runs/a$b$c|d", 0.1 * number, **more)
    rows = table(tmp_path)
    assert drawn[0] == [
        *(r"a\$b\$c|d, layer 6, time 0.5", r"a\$b\$c|d, layer 6, time 0.25", r"a\$b\$c|d, layer 7"),
        *(r"a\$b\$c|d", r"a\$b\$c|d (4.json)", r"a\$b\$c|d (5.json)"),
    ]
    assert rows[0]["val"] == "imagenet/val"
    assert [row["model"] for row in rows] == [r"`a$b$c\|d`"] * 4 + [rf"`a$b$c\|d` ({n}.json)" for n in (4, 5)]


# ---- Names and numbers of all kinds


def test_names_break_no_table(tmp_path: Path):
    names = ["a|b", "a\nb", "a`b", "``", "<b>bold</b>", "*x*", "\ud800", "x" * 300]
    for number, name in enumerate(names):
        made(tmp_path, f"{number}.json", reconstruction, "m", model=fingerprinted(None, name), tokens=number)
    rows = table(tmp_path)
    assert [row["tokenizer"] for row in rows] == [
        *(r"`a\|b`", "`a b`", "``a`b``", "``` `` ```", "`b>`", "`*x*`", "`?`", f"`{'x' * 300}`")
    ]
    assert [row["tokens"] for row in rows] == [str(number) for number in range(len(names))]


def test_other_words_mean_nothing_in_markdown(tmp_path: Path):
    data = "a|b\n*c* <i>d</i> [e](f) `g` my_set_ __h__ 1$ \\\\"
    shown = r"a\|b \*c\* \<i\>d\</i\> \[e\](f) \`g\` my_set\_ \_\_h\_\_ 1\$ \\\\"
    probe(tmp_path, "runs/x", 0.5, data=data)
    assert shown in told(tmp_path)[1]
    assert len(table(tmp_path)) == 1
    reconstruction(tmp_path, "runs/x", replace(PAPERS, reference="a\n| b |\n|---|"))
    assert r"against a \| b \| \|---\| (" in told(tmp_path)[1]
    odd = tmp_path / "*odd*.json"
    odd.write_text("{}")
    assert r"\*odd\*.json" in told(tmp_path)[1]


def test_figures_that_are_no_numbers_stand_there_and_are_not_drawn(tmp_path: Path, drawn):
    for number, value in enumerate((math.nan, math.inf, None, 0.0, 0.5)):
        made(tmp_path, f"{number}.json", probe, f"runs/{number}", value)
        made(tmp_path, f"r{number}.json", reconstruction, f"runs/{number}", scores={"rfid": value, "psnr": 1.0})
    found, text = told(tmp_path)
    first, second = tables(text)
    assert [row["rFID"] for row in first] == ["nan", "inf", "", "0.00", "0.50"]
    assert [row["top 1 %"] for row in second] == ["nan", "inf", "", "0.00", "50.00"]
    assert drawn == [["3", "4"]]
    assert len(found.figures) == 1


@pytest.mark.parametrize(
    ("write_one", "change", "reason"),
    [
        (lambda folder, name: cost(folder, name, a={}), lambda one: one.update(rows={"a": 3}), "not figures by name"),
        (reconstruction, lambda one: one["protocol"].update(images="many"), "whose number of images is none"),
    ],
)
def test_odd_parts_are_left_out_and_named(tmp_path: Path, write_one, change, reason: str):
    changed(write_one(tmp_path, "odd"), change)
    reconstruction(tmp_path, "runs/good")
    (one,) = told(tmp_path)[0].left_out
    assert reason in one


def test_a_recipe_that_is_no_name_is_none(tmp_path: Path):
    reconstruction(tmp_path, "softvq-l-64", model={"name": "softvq-l-64", "recipe": ["x"]})
    assert table(tmp_path)[0]["row of the paper"] == "Table 1: SoftVQ-L"


# ---- Folders of all kinds


def test_of_many_other_files_the_first_are_named(tmp_path: Path):
    for number in range(1000):
        (tmp_path / f"{number:04}.json").write_text("{}")
    (tmp_path / "folder.json").mkdir()
    reconstruction(tmp_path, "runs/good")
    found, text = told(tmp_path)
    assert found.results == 1
    assert len(found.left_out) == 21
    assert found.left_out[19].startswith(str(tmp_path / "0019.json"))
    assert found.left_out[20] == "980 more files left out."
    assert text.count("Left out: ") == 21


def test_a_report_in_the_folder_of_results_is_not_read_as_one(tmp_path: Path):
    reconstruction(tmp_path / "deep er", "runs/one")
    first = told(tmp_path)
    assert told(tmp_path) == first
    assert told(tmp_path, tmp_path / "deep er" / "again.md")[0].left_out == ()


def test_a_report_takes_no_results_place(tmp_path: Path):
    path = reconstruction(tmp_path, "runs/one")
    before = path.read_bytes()
    with pytest.raises(ConfigError, match="would be a result's file") as error:
        reports.report(tmp_path, path)
    assert error.value.setting == "out"
    with pytest.raises(StorageError, match="is a folder; name a file"):
        reports.report(tmp_path, tmp_path)
    assert path.read_bytes() == before


def test_pictures_of_any_name_are_linked(tmp_path: Path):
    folder = tmp_path / "my (own) [results] 100%"
    path = generation(folder, "a]b", pictures=["generation-a]b.png"])
    path.with_suffix(".png").write_bytes(b"PNG")
    (line,) = [line for line in told(folder)[1].splitlines() if line.startswith("![")]
    assert line == r"![generation-a\]b](generation-a%5Db.png)"
    text = told(folder, tmp_path / "r.md")[1]
    assert "](my%20%28own%29%20%5Bresults%5D%20100%25/generation-a%5Db.png)" in text
