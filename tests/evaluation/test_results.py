"""Protocols: what may be compared, and what differs where not."""

from dataclasses import fields, replace

import pytest

from softvq.errors import MetricError
from softvq.evaluation.results import Protocol

ONE = Protocol(
    images=50_000,
    size=256,
    crop="ADM's centre crop",
    features="inception-2015-12-05",
    weights="0123456789abcdef",
    resizing="299 px, bilinear as TensorFlow 1",
    reference="imagenet/val",
    reference_checksum="fedcba9876543210",
    reference_images=50_000,
    precision="float32",
)
OTHERS = {
    "images": 10_000,
    "size": 512,
    "crop": "none",
    "features": None,
    "weights": "ffff",
    "resizing": "clean",
    "reference_checksum": "ffff",
    "reference_images": None,
    "precision": "bfloat16",
}


def test_a_protocol_equals_itself_and_what_its_reference_is_called_does_not_matter():
    assert ONE.differences(ONE) == []
    assert ONE.differences(replace(ONE, reference="/data/ILSVRC/val")) == []


@pytest.mark.parametrize("name", OTHERS)
def test_each_field_is_named_with_both_values(name: str):
    other = replace(ONE, **{name: OTHERS[name]})
    assert ONE.differences(other) == [f"{name.replace('_', ' ')} {getattr(ONE, name)} and {OTHERS[name]}"]
    assert other.differences(ONE) == [f"{name.replace('_', ' ')} {OTHERS[name]} and {getattr(ONE, name)}"]


def test_every_field_but_the_reference_is_compared():
    assert set(OTHERS) | {"reference"} == {field.name for field in fields(Protocol)}
    assert len(ONE.differences(replace(ONE, **OTHERS))) == len(OTHERS)


def test_it_goes_through_a_dictionary():
    assert Protocol.from_dict(ONE.to_dict()) == ONE
    assert set(ONE.to_dict()) == {field.name for field in fields(Protocol)}


@pytest.mark.parametrize("name", ["images", "weights", "precision"])
def test_a_missing_field_is_a_sentence(name: str):
    data = ONE.to_dict()
    del data[name]
    with pytest.raises(MetricError, match=rf"a protocol has the fields images, .*; '{name}' is missing or unknown\.$"):
        Protocol.from_dict(data)


def test_an_unknown_field_is_a_sentence():
    with pytest.raises(MetricError, match="'colour' is missing or unknown"):
        Protocol.from_dict({**ONE.to_dict(), "colour": "grey"})
    with pytest.raises(MetricError, match="is missing or unknown"):
        Protocol.from_dict({})
