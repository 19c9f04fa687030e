"""The result of a measurement: figures, with all that they are a function of.

Two figures of one protocol can be compared; others are refused.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from PIL import Image

from softvq import __version__, distributed, files
from softvq.errors import MetricError, counted
from softvq.figures import save_picture

EVALUATION = "evaluation"  # what a result's file says it is


@dataclass(frozen=True)
class Protocol:
    """The conditions that figures were measured under, and that must be equal for two figures to be compared.

    `images` is the number of images measured, `size` their side (px), and `crop` how they were cut from larger ones;
    `features`, `weights` and `resizing` describe the feature network; `reference` names the real images they were
    compared with, followed by their checksum and number; `precision` is that of the networks.
    """

    images: int
    size: int
    crop: str
    features: str | None
    weights: str | None
    resizing: str | None
    reference: str
    reference_checksum: str
    reference_images: int | None
    precision: str

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Protocol":
        """Return the protocol that `to_dict` returned; raise `MetricError` when a field is missing or unknown."""
        names = [one.name for one in fields(cls)]
        if odd := sorted(set(data) ^ set(names)):
            raise MetricError(f"a protocol has the fields {', '.join(names)}; {odd[0]!r} is missing or unknown.")
        return cls(**data)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, JSON-ready."""
        return asdict(self)

    def differences(self, other: "Protocol") -> list[str]:
        """Return the reasons why figures of the two cannot be compared, a part of a sentence each; none if they can.

        The name of the reference does not matter, its checksum does.
        """
        reasons = []
        for name in (one.name for one in fields(self) if one.name != "reference"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                reasons.append(f"{name.replace('_', ' ')} {mine} and {theirs}")
        return reasons


@dataclass(frozen=True)
class Result:
    """The outcome of an evaluation.

    `kind` is reconstruction, generation, probe, latents or cost. `name` is a short one, a function of all that the
    result is a function of. `model` holds the model's name and fingerprint, `protocol` the conditions that figures must
    share to be compared, and `scores` the figures by name. `more` has what only this kind has, `notes` what a reader
    must know, `unreadable` the images that were left out, with the reason, and `pictures` are by file name without its
    ending.

    `parts` is the folder of unfinished work that the result was made of, which `write` removes.
    """

    kind: str
    name: str
    model: Mapping[str, Any]
    protocol: Mapping[str, Any]
    scores: Mapping[str, Any] = field(default_factory=dict)
    more: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    unreadable: Mapping[str, str] = field(default_factory=dict)
    pictures: Mapping[str, Image.Image] = field(default_factory=dict)
    parts: Path | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return all but the pictures, JSON-ready."""
        header = {"softvq": EVALUATION, "kind": self.kind, "version": __version__, "date": _today()}
        whole = {
            **header,
            **({"model": self.model} if self.model else {}),
            "protocol": self.protocol,
            **({"scores": self.scores} if self.scores or self.kind != "cost" else {}),
            **self.more,
            **({"unreadable": self.unreadable, "notes": list(self.notes)} if self.notes or self.unreadable else {}),
        }
        return json.loads(json.dumps(whole, default=str))

    def __str__(self) -> str:
        """Return the figures for people, with what a reader must know of them."""
        lines = []
        for name, value in self.scores.items():
            if name.endswith("_over_seeds") or value is None or name == "reliable":
                continue
            deviation = self.scores.get(f"{name}_over_seeds")
            shown = f"{100 * value:8.2f} %" if self.kind == "probe" else f"{value:10.4f}"
            lines.append(f"{name:24} {shown}" + (f" ± {deviation:.4f}" if deviation is not None else ""))
        p = self.protocol
        if "reference" in p:
            against = f"{p['reference']} ({p['reference_checksum']})"
            lines.append(f"\n{counted(p['images'], 'image')} of {p['size']} px against {against}")
            lines.append(f"features: {p['features']} ({p['weights']}), {p['resizing']}, {p['precision']}")
        lines += [f"note: {note}." for note in self.notes]
        if self.unreadable:
            reason = next(iter(self.unreadable.values()))
            lines.append(f"{counted(len(self.unreadable), 'unreadable image')} left out; the first: {reason}")
        return "\n".join(lines)

    def _picture(self, name: str) -> str:
        """Return the name of a picture's file: the result's, and the picture's own where it has one."""
        return name if name == self.name else f"{self.name}-{name}"

    def write(self, folder: str | Path) -> dict[str, Any]:
        """Write `NAME.json` and the pictures into a folder, where `report` finds them.

        Return the content that was written, with its `file`. With several processes the first one writes.
        """
        folder = Path(folder)
        whole, path = self.to_dict(), folder / f"{self.name}.json"
        if self.pictures:
            whole["pictures"] = [str(folder / f"{self._picture(name)}.png") for name in self.pictures]
        distributed.barrier()
        if distributed.rank() == 0:
            for name, picture in self.pictures.items():
                save_picture(picture, folder / f"{self._picture(name)}.png")
            files.write_json(path, whole)
            if self.parts is not None and not any(self.parts.rglob(files.LOCK)):  # another process's work
                shutil.rmtree(self.parts, ignore_errors=True)
        return {**whole, "file": str(path)}


def _today() -> Any:
    return datetime.now(timezone.utc).date()


def short_name(*what: Any) -> str:
    """Return 8 hex digits of all that a result is a function of, so that the same call finds its parts again."""
    text = json.dumps([__version__, *what], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def described(model: Any) -> dict[str, Any]:
    """Return the description of a model in results: its name, fingerprint and recipe."""
    name = str(model.name) or type(model).__name__
    return {"name": name, "fingerprint": model.fingerprint, "recipe": model.about.get("recipe", {}).get("name")}
