"""Tables and figures of measured results, beside the paper's: Markdown from a folder of results.

A table holds only figures of one protocol (images, crop, feature network and its weights, resizing, reference,
precision); others get a table of their own. The paper's figures stand beside those of its recipes, and the table says
whether its protocol is the paper's.
"""

import json
import math
import os
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from softvq import files
from softvq.errors import ConfigError, MetricError, ModelError, SoftVQError, counted
from softvq.evaluation.markdown import Markdown, code, escaped, one_line, table
from softvq.evaluation.results import EVALUATION, Protocol
from softvq.figures import pyplot, rendered, save_picture
from softvq.pretrained.inception import NAME
from softvq.published import GENERATION, GENERATORS, PROBE, TOKENIZERS

Stored = dict[str, Any]  # a result's file, read
_NAMED = 20  # files left out that are named; of more, the number is told


@dataclass(frozen=True)
class Report:
    """A report that was written: its file, the number of results shown, its figures, and reasons for files left out.

    Of many such files the first are named, and the others counted in one sentence.
    """

    file: Path
    results: int
    figures: tuple[Path, ...]
    left_out: tuple[str, ...]


def report(folder: str | Path = "evaluations", out: str | Path | None = None) -> Report:
    """Write tables and figures of the results in a folder, as Markdown (default: `report.md` in it).

    Rows of models with one name have the first digits of their fingerprints, or their files, beside it. Results that
    are the same in all but their date are shown once. Raise `MetricError` when there are no results, `ConfigError` when
    `out` would take the place of one.
    """
    folder = Path(folder)
    if out is not None:
        if Path(out).suffix.lower() == ".json":
            raise ConfigError(f"{out} would be a result's file; a report is Markdown: name it .md.", setting="out")
        files.check_writable(Path(out))
    results, odd = _read(folder)
    if not results:
        reason = f" Left out, the first: {odd[0]}" if odd else ""
        raise MetricError(f"{folder} holds no results of evaluations.{reason}")
    out = folder / "report.md" if out is None else Path(out)
    lines = ["# Measured results", "", *(f"- Left out: {escaped(reason)}" for reason in odd), *([""] if odd else [])]
    figures: list[Path] = []
    for kind, section in _SECTIONS.items():
        if mine := [result for result in results if result["kind"] == kind]:
            lines += section(mine, out, figures)
    files.write_text(out, "\n".join(lines).rstrip() + "\n")
    return Report(out, len(results), tuple(figures), tuple(odd))


def _read(folder: Path) -> tuple[list[Stored], list[str]]:
    """Return the results in the order of their files, and the reasons why other files could not be read."""
    if not folder.is_dir():
        raise MetricError(f"there is no folder {folder}.")
    results, odd = [], []
    known: dict[str, Path] = {}  # by all that it says but when
    for path in sorted(folder.rglob("*.json")):
        if not path.is_file():
            continue
        try:
            result = files.read_json(path)
        except ModelError as error:
            odd.append(str(error))
            continue
        if result.get("softvq") != EVALUATION:
            odd.append(f"{path} holds no result of an evaluation.")
        elif flaw := _flaw(result):
            odd.append(f"{path}: {flaw}")
        elif (first := known.setdefault(_content(result), path)) != path:
            odd.append(f"{path} holds the same result as {first}.")
        else:
            results.append({**result, "file": path, "within": path.relative_to(folder).as_posix()})
    more = [f"{counted(len(odd) - _NAMED, 'more file')} left out."] if len(odd) > _NAMED else []
    return results, [*odd[:_NAMED], *more]


def _content(result: Stored) -> str:
    """Return all that a result says but when it was made, with which version, and where its pictures are."""
    passing = ("date", "version", "pictures", "file")
    return json.dumps({name: value for name, value in result.items() if name not in passing}, sort_keys=True)


_OF_PROTOCOL = {  # what is shown of it; the other kinds' are `Protocol`s
    "probe": ("data", "images", "pool"),
    "latents": ("data", "images"),
    "cost": ("device", "torch", "precision", "batch", "steps", "guidance"),
}


def _flaw(result: Stored) -> str | None:
    """Return the reason why a result cannot be shown; None if it can."""
    kind = result.get("kind")
    if kind not in list(_SECTIONS):
        return "a result without a known kind."
    wanted: dict[str, tuple[str, ...]] = {"protocol": _OF_PROTOCOL.get(kind, ())}
    wanted |= {"rows": ()} if kind == "cost" else {"model": ("name",), "scores": ()}
    wanted |= {"sampling": ("sampler", "steps", "guidance")} if "sampling" in result else {}
    for part, names in wanted.items():
        held = result.get(part)
        if not isinstance(held, dict):
            return f"a result without {part}."
        if missing := [name for name in names if name not in held]:
            return f"a result without {missing[0]} in its {part}."
    if kind == "cost" and not all(isinstance(row, dict) for row in result["rows"].values()):
        return "a result whose rows are not figures by name."
    if kind != "cost" and not all(isinstance(score, int | float | None) for score in result["scores"].values()):
        return "a result whose scores are not numbers."
    if kind in _OF_PROTOCOL:
        return None
    if not isinstance(result["protocol"].get("images", 0), int):
        return "a result whose number of images is none."
    try:
        Protocol.from_dict(result["protocol"])
    except MetricError as error:
        return str(error)
    return None


def _groups(results: list[Stored]) -> list[tuple[Any, list[Stored]]]:
    """Return the results in groups that can be compared, each with its protocol."""
    groups: list[tuple[Any, list[Stored]]] = []
    for result in results:
        protocol = Protocol.from_dict(result["protocol"])
        for known, group in groups:
            if not known.differences(protocol):
                group.append(result)
                break
        else:
            groups.append((protocol, [result]))
    return groups


def _protocol_line(protocol: Any, papers: bool) -> str:
    shown = {name: escaped(str(value)) for name, value in protocol.to_dict().items()}
    features = f"features: {shown['features']} (weights {shown['weights']}), {shown['resizing']}"
    crop = "" if protocol.crop == "none" else f", {shown['crop']}"
    line = (
        f"{protocol.images:,} images of {shown['size']} px{crop}, against {shown['reference']} "
        f"({shown['reference_checksum']}, {protocol.reference_images or '?'} images); {features}; {shown['precision']}."
    )
    return line + ("" if papers else " **Not the paper's protocol**: that is FID, Inception's, of 50,000 images.")


def _is_papers(protocol: Any) -> bool:
    tf1 = protocol.resizing is not None and "TensorFlow" in protocol.resizing
    return protocol.images == 50_000 and protocol.features == NAME and tf1


def _number(value: float | None, digits: int, spread: float | None = None) -> str | None:
    if value is None:
        return None
    return f"{value:.{digits}f}" + (f" ± {spread:.{digits}f}" if spread is not None else "")


def _scores(results: list[Stored], name: str, digits: int) -> list[str | None]:
    return [_number(r["scores"].get(name), digits, r["scores"].get(f"{name}_over_seeds")) for r in results]


def _names(results: list[Stored], *shown: Iterable[Any]) -> list[Markdown]:
    """Return the models' names for a table; `shown` are columns that tell rows of one model apart."""
    rows = zip(map(_name, results), _marks(results, *shown), strict=True)
    return [Markdown(code(name) + "".join(f" ({escaped(mark)})" for mark in own)) for name, own in rows]


def _name(result: Stored) -> str:
    return Path(str(result["model"]["name"])).name or str(result["model"]["name"])


def _marks(results: list[Stored], *shown: Iterable[Any]) -> list[list[str]]:
    """Return what must stand beside each model's name for the rows to differ.

    The fingerprint's first digits tell models of one name apart; the file tells apart what one model was measured
    twice for, unless the columns `shown` do.
    """
    names = [_name(result) for result in results]
    fingerprints = [str(result["model"].get("fingerprint") or "")[:8] for result in results]
    first = _telling(names, fingerprints)
    keys = list(zip(names, first, *(map(str, column) for column in shown), strict=True))
    second = _telling(keys, [result["within"] for result in results])
    return [[mark for mark in own if mark] for own in zip(first, second, strict=True)]


def _telling(keys: Sequence[Hashable], marks: Sequence[str]) -> list[str]:
    """Return the marks of the rows whose key others have too, with other marks; an empty one for the rest."""
    others: dict[Hashable, set[str]] = {}
    for key, mark in zip(keys, marks, strict=True):
        others.setdefault(key, set()).add(mark)
    return [mark if len(others[key]) > 1 else "" for key, mark in zip(keys, marks, strict=True)]


def _recipe(result: Stored) -> str:
    """Return the name of the recipe that the model was made with; for the authors' releases, it is the model's name."""
    model = result["model"]
    recipe = model.get("recipe")
    return recipe if recipe and isinstance(recipe, str) else Path(str(model["name"])).name.replace("_", "-")


def _reconstruction(results: list[Stored], out: Path, figures: list[Path]) -> list[str]:
    lines = ["## Reconstruction (Tables 1 to 5)", ""]
    for protocol, group in _groups(results):
        published = [TOKENIZERS.get(_recipe(r)) for r in group]
        lines += [_protocol_line(protocol, _is_papers(protocol)), ""]
        lines += table(
            {
                "tokenizer": _names(group),
                "row of the paper": [p and f"Table {p.table}: {p.row}" for p in published],
                "tokens": [r.get("tokens") for r in group],
                "rFID, paper": [p and f"{p.rfid:.2f}" for p in published],
                "rFID": _scores(group, "rfid", 2),
                "rFD": _scores(group, "rfd", 1),
                "rsFID": _scores(group, "rsfid", 2),
                "PSNR dB": _scores(group, "psnr", 2),
                "SSIM": _scores(group, "ssim", 4),
                "LPIPS": _scores(group, "lpips", 4),
                "codebook usage": _scores(group, "codebook_usage", 3),
                "perplexity": _scores(group, "codebook_perplexity", 0),
                **_appearance(group),
                "": [None if r["scores"].get("reliable", True) else "few images" for r in group],
            }
        )
    return lines


def _appearance(group: list[Stored]) -> dict[str, list[str | None]]:
    """Return the columns of `evaluation.appearance`: borders of patches, sharpness and blank pictures."""
    blank = [r["scores"].get("nearly_blank") for r in group]
    return {
        "blockiness": _scores(group, "blockiness", 2),
        "of real images": _scores(group, "blockiness_real", 2),
        "gradient energy": _scores(group, "gradient_energy", 2),
        "nearly blank %": [_number(None if share is None else 100 * share, 1) for share in blank],
    }


def _generation(results: list[Stored], out: Path, figures: list[Path]) -> list[str]:
    lines = ["## Generation (Tables 1 to 4 and 6 to 8)", ""]
    for protocol, group in _groups(results):
        printed = [_printed(r) for r in group]
        conditions = {
            "steps": [_steps(r) for r in group],
            "sampler": [_sampler(r) for r in group],
            "guidance": [r.get("sampling", {}).get("guidance") for r in group],
        }
        columns: dict[str, list[Any]] = {"model": _names(group, *conditions.values()), **conditions}
        for name, title, digits in (
            *(("gfid", "gFID", 2), ("inception_score", "IS", 1)),
            *(("precision", "precision", 2), ("recall", "recall", 2)),
        ):
            columns[f"{title}, paper"] = [row and _number(getattr(row, name), digits) for row in printed]
            columns[title] = _scores(group, name, digits)
        columns["gFD"] = _scores(group, "gfd", 1)
        columns["FID"], columns["FD"] = _scores(group, "fid", 2), _scores(group, "fd", 1)  # of `frechet`
        columns["gsFID"] = _scores(group, "gsfid", 2)
        columns["KID"] = _scores(group, "kid", 4)
        columns["nearest"] = _scores(group, "nearest", 2)
        columns |= _appearance(group)
        columns[""] = [None if r["scores"].get("reliable", True) else "few images" for r in group]
        lines += [_protocol_line(protocol, _is_papers(protocol)), "", *table(columns)]
        for result in group:
            lines += _pictures(result, out)
    return lines


def _steps(result: Stored) -> int | None:
    return result["model"].get("steps")


def _sampler(result: Stored) -> str | None:
    sampling = result.get("sampling")
    return sampling and f"{sampling['sampler']}, {sampling['steps']} steps"


def _printed(result: Stored) -> Any:
    """Return the paper's row for this recipe and these steps: without guidance, or at the paper's scale."""
    if "sampling" not in result:
        return None
    name = _recipe(result)
    if name not in GENERATORS:
        return None
    papers = GENERATORS[name]
    rows = GENERATION.get((name, _steps(result) or papers.steps))
    scale = result["sampling"]["guidance"]
    if scale == 1 or not rows:
        return rows and rows[0]
    # At another scale, or in other times, it is another figure.
    same = scale == papers.scale and tuple(result["sampling"].get("interval", papers.interval)) == papers.interval
    return rows[1] if same else None


def _pictures(result: Stored, out: Path) -> list[str]:
    """Return links to a result's pictures, wherever the folder has been moved to."""
    pictures = [result["file"].with_name(Path(name).name) for name in result.get("pictures", [])]
    links = [f"![{escaped(picture.stem)}]({_link(picture, out)})" for picture in pictures if picture.is_file()]
    return [*links, ""] if links else []


def _link(picture: Path, out: Path) -> str:
    return quote(Path(os.path.relpath(picture, out.parent)).as_posix().encode("utf-8", "surrogateescape"))


def _probe(results: list[Stored], out: Path, figures: list[Path]) -> list[str]:
    protocols = [r["protocol"] for r in results]
    shown = ("data", "images", "val", "val_images", "layer", "time", "pool")
    conditions = {name.replace("_", " "): [p.get(name) for p in protocols] for name in shown}
    scores = {
        title: [_percent(r["scores"].get(name)) for r in results]
        for title, name in (("top 1 %", "probe_top1"), ("top 5 %", "probe_top5"), ("balanced %", "probe_balanced"))
    }
    lines = ["## Linear probing (Fig. 3, Table 4)", ""]
    lines += table(
        {
            "model": _names(results, *conditions.values()),
            **conditions,
            "top 1 %, paper": [_number(PROBE.get(_recipe(r)), 2) for r in results],
            **scores,
            "k-NN %": [_percent(r["scores"].get("knn_top1")) for r in results],
        }
    )
    path = out.with_name(f"{out.stem}-probe.png")
    bars = list(zip(_probed(results, conditions), [r["scores"].get("probe_top1") for r in results], strict=True))
    return [*lines, *_bars(bars, "top-1 accuracy of a linear probe", path, figures)]


def _percent(share: float | None) -> str | None:
    return None if share is None else _number(100 * share, 2)


def _probed(results: list[Stored], conditions: dict[str, list[Any]]) -> list[str]:
    """Return a label for each bar: the model and its layer, and of the other conditions those that tell it apart."""
    marks = _marks(results, *conditions.values())
    labels = [" ".join([_name(r), *(f"({mark})" for mark in own)]) for r, own in zip(results, marks, strict=True)]
    labels = [
        label if layer is None else f"{label}, layer {layer}"
        for label, layer in zip(labels, conditions["layer"], strict=True)
    ]
    for name in ("time", "pool", "data", "images", "val", "val images"):
        telling = _telling(labels, [f"{name} {value}" for value in conditions[name]])
        labels = [f"{label}, {mark}" if mark else label for label, mark in zip(labels, telling, strict=True)]
    return labels


def _cost(results: list[Stored], out: Path, figures: list[Path]) -> list[str]:
    lines = ["## Cost (Tables 1 and 2)", ""]
    for number, result in enumerate(results):
        p, rows = result["protocol"], list(result["rows"].values())
        timed = f"; batch {p['batch']}, {p['steps']} steps, guidance {p['guidance']:g}" if p.get("timed") else ""
        lines += [escaped(f"{p['device']}, PyTorch {p['torch']}, {p['precision']}{timed}."), ""]
        lines += table(
            {
                "row": [code(name) for name in result["rows"]],
                "": [row.get("about") for row in rows],
                "M parameters": [_number(row.get("parameters"), 1) for row in rows],
                "GMACs, paper": [_number(row.get("published_gmacs"), 2) for row in rows],
                "GMACs": [_number(row.get("gmacs"), 2) for row in rows],
                "decoder": [_number(row.get("decode_gmacs"), 1) for row in rows],
                "GB": [_number(row.get("memory_gb"), 2) for row in rows],
                "ms an evaluation": [_number(row.get("evaluation_ms"), 1) for row in rows],
                "ms decoding": [_number(row.get("decode_ms"), 1) for row in rows],
                "images/s, paper": [_number(row.get("published_images_per_second"), 2) for row in rows],
                "images/s": [_number(row.get("images_per_second"), 3) for row in rows],
            }
        )
        path = out.with_name(f"{out.stem}-cost{number or ''}.png")
        speeds = [(name, row.get("images_per_second")) for name, row in result["rows"].items()]
        lines += _bars(speeds, "images a second", path, figures)
    return lines


def _bars(values: list[tuple[str, float | None]], title: str, path: Path, figures: list[Path]) -> list[str]:
    """Draw a bar for each name and return a link to the picture; nothing for less than two, or without matplotlib."""
    known = [(name, value) for name, value in values if value is not None and math.isfinite(value)]
    if len(known) < 2:
        return []
    try:
        plt = pyplot()
    except SoftVQError:
        return []
    figure, axis = plt.subplots(figsize=(6, 0.6 + 0.3 * len(known)), layout="constrained")
    axis.barh(range(len(known)), [value for _, value in known])
    axis.set_yticks(range(len(known)), [one_line(name).replace("$", r"\$") for name, _ in known])
    axis.invert_yaxis()
    axis.set_xlabel(title)
    save_picture(rendered(figure), path)
    figures.append(path)
    return [f"![{title}]({_link(path, path)})", ""]


def _latents(results: list[Stored], out: Path, figures: list[Path]) -> list[str]:
    lines = ["## Latent space (Fig. 4)", ""]
    conditions = {name: [r["protocol"][name] for r in results] for name in ("data", "images")}
    lines += table(
        {
            "tokenizer": _names(results, *conditions.values()),
            **conditions,
            "cosine of ẑ and z": _scores(results, "cosine", 3),
            "variance of ẑ not in z": _scores(results, "unexplained", 3),
            "codebook usage": _scores(results, "codebook_usage", 3),
            "perplexity": _scores(results, "codebook_perplexity", 0),
            "H(q), nats": _scores(results, "posterior_entropy", 2),
            "cosine with the nearest codeword": _scores(results, "nearest_cosine", 3),
        }
    )
    for result in results:
        lines += _pictures(result, out)
    return lines


_SECTIONS = {
    "reconstruction": _reconstruction,
    "generation": _generation,
    "probe": _probe,
    "latents": _latents,
    "cost": _cost,
}
