"""Protocols: what may be compared, and what differs where not; results: what is written of them."""

import json
from dataclasses import fields, replace
from pathlib import Path

import pytest
from PIL import Image

from softvq.errors import MetricError
from softvq.evaluation.results import Protocol, Result, short_name

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


# ---- Results

RESULT = Result("generation", "generation-mine-0", {"name": "mine", "fingerprint": "ff"}, ONE.to_dict(), {"gfid": 1.5})


@pytest.mark.parametrize("notes", [(), ("few images",)])
def test_what_was_left_out_is_told(notes: tuple[str, ...]):
    """Whether there is anything else that a reader must know, or not."""
    told = replace(RESULT, unreadable={"a.png": "a.png is not an image"}, notes=notes).to_dict()
    assert told["unreadable"] == {"a.png": "a.png is not an image"}
    assert told.get("notes", []) == list(notes)


def test_a_result_is_written_with_its_pictures_and_its_parts_go(tmp_path: Path):
    parts, out = tmp_path / "unfinished", tmp_path / "out"
    parts.mkdir()
    (parts / "0.safetensors").write_bytes(b"")
    pictures = {name: Image.new("RGB", (3, 2), name) for name in ("red", "blue")}
    whole = replace(RESULT, more={"sampling": {"steps": Path("2")}}, pictures=pictures, parts=parts).write(out)
    assert whole["pictures"] == [str(out / f"{RESULT.name}-red.png"), str(out / f"{RESULT.name}-blue.png")]
    for name in pictures:
        with Image.open(out / f"{RESULT.name}-{name}.png") as stored:
            assert stored.getpixel((0, 0)) == pictures[name].getpixel((0, 0))
    file = Path(whole.pop("file"))
    assert json.loads(file.read_text()) == whole
    assert (whole["sampling"], whole["scores"]) == ({"steps": "2"}, {"gfid": 1.5})  # what JSON has no word for is text
    assert sorted(path.name for path in out.iterdir()) == [
        f"{RESULT.name}-blue.png",
        f"{RESULT.name}-red.png",
        f"{RESULT.name}.json",
    ]
    assert not parts.exists()


def test_a_name_is_of_all_that_the_result_is_a_function_of():
    assert short_name("a", {"b": 1, "c": Path("d")}) == short_name("a", {"c": Path("d"), "b": 1})
    assert len({short_name("a"), short_name("a", None), short_name("b"), short_name(["a"])}) == 4
    assert len(short_name()) == 8
