"""`emoji-train` and `emoji-dev`: the bundled training images in two parts that have nothing to do with each other."""

import pickle
import re
from collections import Counter

import pytest

from softvq.data.opening import BUNDLED, emoji_labels, open_source
from softvq.data.shards import TarFile
from softvq.data.sources import EMOJI

COUNTS = {"emoji": 3094, "emoji-train": 2794, "emoji-dev": 300, "emoji-val": 280}
TONES = {"1f3fb", "1f3fc", "1f3fd", "1f3fe", "1f3ff"}


@pytest.fixture(scope="module")
def sets() -> dict[str, TarFile]:
    return {name: open_source(name) for name in COUNTS}


def toneless(name: str) -> str:
    """An emoji's name without what it says of skin tones: `man: medium skin tone, bald` is `man: bald`."""
    head, _, tail = name.partition(": ")
    kept = [part for part in tail.split(", ") if part and not part.endswith("skin tone")]
    return f"{head}: {', '.join(kept)}" if kept else head


def bases(source: TarFile) -> set[str]:
    labels = emoji_labels()
    return {toneless(labels[name.split("/")[1].removesuffix(".webp")]["name"]) for name in source.names}


def code_points(source: TarFile) -> set[tuple[str, ...]]:
    """Without tones, and without U+FE0F, which toned variants drop."""
    keys = (name.split("/")[1].removesuffix(".webp") for name in source.names)
    return {tuple(c for c in key.split("-") if c not in TONES | {"fe0f"}) for key in keys}


def test_how_many_there_are_is_what_is_said_of_them(sets):
    assert set(BUNDLED) == set(COUNTS)
    for name, source in sets.items():
        assert len(source.names) == len(set(source.names)) == COUNTS[name]
        assert f"{COUNTS[name]:,}" in re.findall(r"\d[\d,]*", BUNDLED[name])


def test_train_and_dev_are_the_training_images_and_share_none(sets):
    train, dev = (set(sets[name].names) for name in ("emoji-train", "emoji-dev"))
    assert train | dev == set(sets["emoji"].names)
    assert not train & dev
    assert not dev & set(sets["emoji-val"].names)


def test_images_are_read_as_from_the_whole(sets):
    whole = sets["emoji"]
    for name in ("emoji-train", "emoji-dev"):
        part = sets[name]
        assert part.names == sorted(part.names)
        for index in range(0, len(part.names), 53):
            assert part.read(index) == whole.read(whole.names.index(part.names[index]))


def test_no_picture_of_dev_is_in_train_or_val_under_another_name(sets):
    dev, train, val = (
        {source.read(i) for i in range(len(source.names))}
        for source in (sets[name] for name in ("emoji-dev", "emoji-train", "emoji-val"))
    )
    assert not dev & train
    assert not dev & val


def test_a_class_has_its_share_of_dev_to_one_image(sets):
    whole, dev = (Counter(name.split("/")[0] for name in sets[data].names) for data in ("emoji", "emoji-dev"))
    assert dev.keys() == whole.keys()
    for name, count in whole.items():
        assert abs(dev[name] - count * 300 / 3094) <= 1, name


def test_class_numbers_mean_the_same_in_every_set(sets):
    assert len(sets["emoji"].classes) == 9
    for source in sets.values():
        assert source.classes == sets["emoji"].classes
        assert [source.classes[label] for label in source.labels] == [name.split("/")[0] for name in source.names]


def test_names_without_tones():
    assert toneless("waving hand: dark skin tone") == "waving hand"
    assert toneless("man: medium-light skin tone, bald") == "man: bald"
    assert toneless("flag: Canada") == "flag: Canada"
    assert toneless("astronaut") == "astronaut"


@pytest.mark.parametrize("of", [bases, code_points])
def test_no_emoji_is_on_both_sides_in_another_skin_tone(sets, of):
    train, dev, val = (of(sets[name]) for name in ("emoji-train", "emoji-dev", "emoji-val"))
    assert len(dev) < 300  # there are variants
    assert not dev & train
    assert not dev & val


def test_a_run_on_one_part_is_not_resumed_on_another(sets):
    told = [open_source(name).identity for name in COUNTS]
    assert all(told.count(one) == 1 for one in told)


def test_workers_get_them_by_pickle(sets):
    for name in ("emoji-train", "emoji-dev"):
        fresh = open_source(name)  # before and after the names were listed
        for source in (fresh, sets[name]):
            copy = pickle.loads(pickle.dumps(source))
            assert copy == source
            assert (copy.names, copy.labels) == (sets[name].names, sets[name].labels)
            assert copy.read(7) == sets[name].read(7)


def test_a_name_that_is_chosen_but_not_there_is_no_image():
    chosen = TarFile(EMOJI / "train.tar", only=frozenset({"flags/1f1e6-1f1f7.webp", "flags/none.webp"}))
    assert chosen.names == ["flags/1f1e6-1f1f7.webp"]
