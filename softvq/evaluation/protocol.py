"""What a figure is a function of besides the model: two figures of one protocol can be compared, others are refused."""

from dataclasses import asdict, dataclass, fields
from typing import Any

from softvq.errors import MetricError


@dataclass(frozen=True)
class Protocol:
    """`images`: how many were measured, `size`: their side (px), `crop`: how they were cut from larger ones;
    `features`, `weights`, `resizing`: of the feature network; `reference`: what real images they were compared with,
    its checksum and how many images; `precision`: of the networks."""

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
    def from_dict(cls, data: dict[str, Any]) -> "Protocol":
        """`MetricError` when something is missing or unknown."""
        names = [field.name for field in fields(cls)]
        if odd := sorted(set(data) ^ set(names)):
            raise MetricError(f"a protocol has the fields {', '.join(names)}; {odd[0]!r} is missing or unknown.")
        return cls(**data)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def differences(self, other: "Protocol") -> list[str]:
        """Why figures of the two cannot be compared, a sentence's part each; none if they can. What the reference is
        called does not matter, its checksum does."""
        found = []
        for field in fields(self):
            mine, theirs = getattr(self, field.name), getattr(other, field.name)
            if field.name != "reference" and mine != theirs:
                found.append(f"{field.name.replace('_', ' ')} {mine} and {theirs}")
        return found
