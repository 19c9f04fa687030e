"""The order of images and every batch are functions of the seed and the sample number, whoever makes them."""

import io
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from softvq import distributed
from softvq.data.images import Augment, fit, open_image, to_tensor
from softvq.data.loader import Batch, NoneReadable, ordered_batches, training_batches
from softvq.data.order import Order, evenly
from softvq.data.sources import Folder
from softvq.errors import DataError
from softvq.randomness import Stream, rng

few = settings(max_examples=40, deadline=None, derandomize=True)
lengths, numbers, seeds = st.integers(1, 12), st.integers(0, 60), st.integers(0, 99)
IMAGES, SIZE = 7, 8


def lay(root: Path, good: int = 0, bad: tuple[int, ...] = (), side: int | None = None) -> Folder:
    """`good` noise images over two classes, of 13 × 11 pixels or square; those numbered in `bad` are no images."""
    for number in range(good):
        path = root / "ab"[number % 2] / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (side or 13, side or 11, 3), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        path.write_bytes(b"no image" if number in bad else file.getvalue())
    return Folder(root)


@pytest.fixture
def source(tmp_path) -> Folder:
    return lay(tmp_path / "images", IMAGES)


def first(count: int, source: Folder, **options) -> list[Batch]:
    options = {"size": SIZE, "batch_size": 4, "augment": Augment(), "seed": 5, "workers": 0} | options
    return list(islice(training_batches(source, **options), count))


def assert_same(batch: Batch, other: Batch) -> None:
    assert torch.equal(batch.images, other.images)
    assert torch.equal(batch.labels, other.labels)
    assert (batch.names, batch.positions, batch.bad) == (other.names, other.positions, other.bad)


# Order


@few
@given(length=lengths, seed=seeds, epoch=st.integers(0, 5))
def test_every_epoch_is_a_permutation(length, seed, epoch):
    order = Order(length, seed)
    assert sorted(order.at(range(epoch * length, (epoch + 1) * length))) == list(range(length))


@few
@given(length=lengths, seed=seeds, cuts=st.lists(numbers, min_size=3, max_size=3).map(sorted))
def test_the_order_can_be_cut_anywhere(length, seed, cuts):
    a, b, c = cuts
    order = Order(length, seed)
    whole = order.at(range(a, c))
    assert whole == order.at(range(a, b)) + order.at(range(b, c))
    assert len(whole) == c - a
    assert whole == order.at(range(c))[a:]


def test_epochs_and_seeds_differ():
    orders = {tuple(Order(50, seed).at(range(epoch * 50, (epoch + 1) * 50))) for seed in range(4) for epoch in range(4)}
    assert len(orders) == 16
    assert tuple(range(50)) not in orders


# Training batches


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("start", [1, 2, 5])
def test_starting_at_a_step_gives_the_batches_of_a_run_from_zero(source, start, workers):
    """Seven images in batches of four: step 1 straddles the first two epochs, step 2 is inside one, step 5 later."""
    whole = first(8, source)
    for batch, expected in zip(first(3, source, start_step=start, workers=workers), whole[start:], strict=False):
        assert_same(batch, expected)


def test_workers_change_nothing(source):
    batches = first(5, source, workers=2)
    assert len(batches) == 5
    for batch, expected in zip(batches, first(5, source), strict=True):
        assert_same(batch, expected)


def test_batches_are_what_they_say(source):
    """Each sample is its named image, augmented by its own random numbers; names follow the order."""
    order, augment = Order(IMAGES, 5), Augment()
    for step, batch in enumerate(first(4, source)):
        assert batch.positions == list(range(4 * step, 4 * step + 4))
        assert batch.bad == {}
        assert batch.images.dtype == torch.float32
        assert batch.images.shape == (4, 3, SIZE, SIZE)
        assert batch.images.abs().max() <= 1
        for i, (position, index) in enumerate(
            zip(batch.positions, order.at(range(4 * step, 4 * step + 4)), strict=True)
        ):
            assert batch.names[i] == source.names[index]
            assert batch.labels[i] == source.labels[index]
            view = augment(open_image(source.read(index)), SIZE, rng(5, Stream.AUGMENT, position))
            assert torch.equal(batch.images[i], to_tensor(view))


def test_an_epoch_holds_every_image_once_and_epochs_are_augmented_anew(source):
    samples = [(n, x) for b in first(7, source) for n, x in zip(b.names, b.images, strict=True)]
    for epoch in range(4):
        assert sorted(name for name, _ in samples[epoch * 7 : epoch * 7 + 7]) == sorted(source.names)
    views = {name: {x.numpy().tobytes() for n, x in samples if n == name} for name in source.names}
    assert all(len(of_one) > 1 for of_one in views.values())


def test_a_sample_depends_on_seed_and_position_alone(source):
    """Not on the batch it comes in, not on what was drawn before, not on the global random numbers."""
    small = first(8, source, batch_size=2)
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    for number, batch in enumerate(first(4, source)):
        pair = small[2 * number : 2 * number + 2]
        assert torch.equal(batch.images, torch.cat([b.images for b in pair]))
        assert batch.positions == pair[0].positions + pair[1].positions
    other = first(1, source, seed=6)[0]
    assert not torch.equal(other.images, first(1, source)[0].images)


def test_two_ranks_together_make_the_one_process_batch(source, monkeypatch):
    whole = first(4, source)
    halves = []
    for rank in range(2):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        monkeypatch.setattr(distributed, "world_size", lambda: 2)
        halves.append(first(4, source))
    for batch, left, right in zip(whole, *halves, strict=True):
        assert torch.equal(batch.images, torch.cat((left.images, right.images)))
        assert torch.equal(batch.labels, torch.cat((left.labels, right.labels)))
        assert batch.names == left.names + right.names
        assert batch.positions == left.positions + right.positions


def test_a_batch_that_cannot_be_shared_is_a_sentence_with_both_numbers(source, monkeypatch):
    monkeypatch.setattr(distributed, "world_size", lambda: 3)
    with pytest.raises(DataError, match=r"4 .* 3 "):
        first(1, source)


def test_each_part_of_a_batch_is_the_same_for_any_number_of_ranks(source, monkeypatch):
    """So that gradients that are gathered over parts are the same sums."""
    whole = first(2, source, batch_size=8)
    for batch, expected in zip(first(2, source, batch_size=8, parts=2), whole, strict=True):
        assert_same(batch, expected)
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    shares = []
    for rank in range(2):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        shares.append(first(2, source, batch_size=8, parts=2))
    for step, expected in enumerate(whole):
        for part in range(2):
            mine = [share[step].part(slice(2 * part, 2 * part + 2)) for share in shares]
            wanted = expected.part(slice(4 * part, 4 * part + 4))
            assert torch.equal(torch.cat([one.images for one in mine]), wanted.images)
            assert torch.equal(torch.cat([one.labels for one in mine]), wanted.labels)
            assert [position for one in mine for position in one.positions] == wanted.positions
            assert {one.step for one in mine} == {wanted.step} == {step}


def test_a_batch_that_cannot_be_shared_among_parts_says_what_can(source):
    with pytest.raises(
        DataError, match=r"batch_size 4 .* 1 process × 3 parts \(accumulate\); take a multiple of 3"
    ) as e:
        first(1, source, parts=3)
    assert e.value.setting == "batch_size"


def test_batches_say_which_step_they_are_for(source):
    assert [batch.step for batch in first(3, source)] == [0, 1, 2]
    assert [batch.step for batch in first(3, source, start_step=5, workers=1)] == [5, 6, 7]


def test_batches_move_whole(source):
    batch = first(1, source)[0]
    moved = batch.to(torch.device("meta"))
    assert (moved.images.device.type, moved.labels.device.type) == ("meta", "meta")
    assert (moved.names, moved.positions, moved.bad) == (batch.names, batch.positions, batch.bad)


# Bad files


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_file_is_replaced_and_named(tmp_path, workers):
    source = lay(tmp_path, IMAGES, bad=(6,))
    bad = "a/06.png"  # the last of its class: the next image is of the other, and so must be the label
    batches, order = first(7, source, workers=workers), Order(IMAGES, 5)
    replacement = source.names[source.names.index(bad) + 1]
    for step, batch in enumerate(batches):
        asked = [source.names[i] for i in order.at(range(4 * step, 4 * step + 4))]
        assert batch.names == [replacement if name == bad else name for name in asked]
        assert batch.labels.tolist() == [source.labels[source.names.index(name)] for name in batch.names]
        assert batch.images.shape == (4, 3, SIZE, SIZE)
        assert list(batch.bad) == ([bad] if bad in asked else [])
        assert all(reason.startswith(bad) for reason in batch.bad.values())
    assert sum(len(batch.bad) for batch in batches) == 4  # once an epoch: 28 samples of 7 images


def test_the_image_after_the_last_is_the_first(tmp_path):
    source = lay(tmp_path, 4, bad=(1, 3))  # a/00, a/02, b/01, b/03: the last two are bad
    batch = first(1, source)[0]
    assert set(batch.names) == {"a/00.png", "a/02.png"}
    assert batch.names.count("a/00.png") == 3
    assert set(batch.bad) == {"b/01.png", "b/03.png"}


def test_a_file_that_vanished_is_replaced_too(source):
    (source.root / source.names[0]).unlink()
    batches = first(2, source)  # more than an epoch
    assert source.names[0] in {name for batch in batches for name in batch.bad}
    assert all(len(batch.names) == 4 for batch in batches)


def test_a_pipe_is_a_bad_file_and_nobody_waits_for_it(source):
    os.mkfifo(source.root / "a" / "pipe.png")
    batches = list(ordered_batches(Folder(source.root), size=SIZE, batch_size=4))
    assert sum(len(batch) for batch in batches) == IMAGES
    bad = {name: why for batch in batches for name, why in batch.bad.items()}
    assert bad == {"a/pipe.png": "a/pipe.png is a pipe or a device, and no file."}


@pytest.mark.parametrize("workers", [0, 2])
def test_a_folder_of_bad_files_only_is_a_sentence(tmp_path, workers):
    """With workers too, which is what a user has: not the traceback of a worker process."""
    with pytest.raises(DataError, match="none of the 3 images can be read") as error:
        first(1, lay(tmp_path, 3, bad=(0, 1, 2)), workers=workers)
    assert "\n" not in str(error.value).strip()
    assert not multiprocessing.active_children()  # they have ended with it, and are not waited for later


# Ordered batches


@pytest.mark.parametrize("how", ["crop", "resize", "pad"])
def test_ordered_batches_are_all_images_once_in_order(source, how):
    batches = list(ordered_batches(source, size=SIZE, batch_size=3, how=how))
    assert [len(batch.names) for batch in batches] == [3, 3, 1]
    assert [name for batch in batches for name in batch.names] == source.names
    assert [index for batch in batches for index in batch.positions] == list(range(IMAGES))
    assert [label for batch in batches for label in batch.labels.tolist()] == source.labels
    expected = [to_tensor(fit(open_image(source.read(i)), SIZE, how)) for i in range(IMAGES)]
    assert torch.equal(torch.cat([batch.images for batch in batches]), torch.stack(expected))


def test_ordered_batches_crop_unless_told(source):
    batch, crop = (next(ordered_batches(source, size=SIZE, batch_size=7, **how)) for how in ({}, {"how": "crop"}))
    assert_same(batch, crop)


def test_chosen_images_come_in_the_order_chosen(source):
    chosen = [5, 0, 6, 2, 2]
    batches = list(ordered_batches(source, size=SIZE, batch_size=2, chosen=chosen))
    assert [index for batch in batches for index in batch.positions] == chosen
    assert [name for batch in batches for name in batch.names] == [source.names[i] for i in chosen]
    assert list(ordered_batches(source, size=SIZE, batch_size=2, chosen=[])) == []


def bad_names(batches) -> set[str]:
    return {name for batch in batches for name in batch.bad}


def test_bad_files_are_left_out_and_named(tmp_path):
    source = lay(tmp_path, IMAGES, bad=(2, 5))
    batches = list(ordered_batches(source, size=SIZE, batch_size=4))
    good = [name for name in source.names if name not in ("a/02.png", "b/05.png")]
    assert [name for batch in batches for name in batch.names] == good
    assert [source.names[i] for batch in batches for i in batch.positions] == good
    assert [label for batch in batches for label in batch.labels.tolist()] == [0, 0, 0, 1, 1]
    assert bad_names(batches) == {"a/02.png", "b/05.png"}
    assert all(reason.startswith(name) for batch in batches for name, reason in batch.bad.items())


@pytest.mark.parametrize(
    "bad", [(0, 2), (4, 6), (1, 3), (5,)], ids=["the first batch", "the second", "the third", "the last, of one"]
)
def test_a_batch_of_bad_files_only_is_still_reported(tmp_path, bad):
    source = lay(tmp_path, IMAGES, bad=bad)  # in order: a/00 a/02, a/04 a/06, b/01 b/03, b/05
    batches = list(ordered_batches(source, size=SIZE, batch_size=2))
    assert sum(len(batch.names) for batch in batches) == IMAGES - len(bad)
    assert bad_names(batches) == {source.names[i] for i in range(IMAGES) if int(source.names[i][2:4]) in bad}


@pytest.mark.parametrize("workers", [0, 2])
def test_ordered_batches_of_bad_files_only_name_them_all(tmp_path, workers):
    source = lay(tmp_path, 3, bad=(0, 1, 2))
    with pytest.raises(NoneReadable, match=r"^none of the 3 images can be read; the first: a/00\.png ") as error:
        list(ordered_batches(source, size=SIZE, batch_size=2, workers=workers))
    assert list(error.value.bad) == source.names
    again = pickle.loads(pickle.dumps(error.value))  # as it comes out of a worker process
    assert (str(again), again.bad) == (str(error.value), error.value.bad)


@pytest.mark.parametrize("how", ["crop", "keep"])
def test_workers_change_no_ordered_batch(tmp_path, how):
    """Bad files in it, and one batch of them only."""
    source = lay(tmp_path, 9, bad=(0, 2, 7), side=SIZE)
    one, other = (list(ordered_batches(source, size=SIZE, batch_size=2, how=how, workers=w)) for w in (0, 2))
    assert bad_names(one) == {"a/00.png", "a/02.png", "b/07.png"}
    for batch, expected in zip(other, one, strict=True):
        assert_same(batch, expected)


# Images that are kept as they are


def test_kept_images_are_the_files_pixels(tmp_path):
    source = lay(tmp_path, 4, side=SIZE)
    (batch,) = ordered_batches(source, size=SIZE, batch_size=4, how="keep")
    expected = [to_tensor(open_image(source.read(i))) for i in range(4)]
    assert torch.equal(batch.images, torch.stack(expected))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("shape", [(SIZE, SIZE + 1), (SIZE - 1, SIZE), (2 * SIZE, 2 * SIZE)])
def test_an_image_of_another_size_is_a_sentence_with_both_sizes(tmp_path, shape, workers):
    """Among bad files, which are no reason to stop."""
    source = lay(tmp_path, 6, bad=(0,), side=SIZE)
    Image.new("RGB", shape).save(source.root / "b" / "03.png")
    batches = ordered_batches(source, size=SIZE, batch_size=2, how="keep", workers=workers)
    wanted = rf"^b/03\.png has {shape[0]}×{shape[1]} pixels, not {SIZE}×{SIZE}: all must be of one size\.$"
    with pytest.raises(DataError, match=wanted):
        list(batches)
    fitted = list(ordered_batches(source, size=SIZE, batch_size=2, how="crop", workers=workers))
    assert sum(map(len, fitted)) == 5


@pytest.mark.parametrize("total", [1, 2, 7, 64, 100])
@pytest.mark.parametrize("count", [1, 2, 7, 64])
def test_numbers_spread_evenly_have_both_ends_and_no_gap_twice_another(count: int, total: int):
    numbers = evenly(count, total)
    assert len(numbers) == len(set(numbers)) == min(count, total)
    assert numbers[0] == 0
    if count > 1:
        assert numbers[-1] == total - 1
        gaps = [after - before for before, after in pairwise(numbers)] or [1]
        assert max(gaps) - min(gaps) <= 1


# The end of workers


@dataclass(frozen=True)
class Deadly(Folder):
    """A folder whose fourth image kills the process that reads it, as a machine without memory does."""

    def read(self, index: int) -> bytes:
        if index == 3 and multiprocessing.parent_process() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().read(index)


@pytest.mark.parametrize("training", [True, False])
def test_a_worker_that_is_killed_is_a_sentence_and_all_workers_end(source, training: bool):
    deadly, before = Deadly(source.root), signal.getsignal(signal.SIGCHLD)
    batches = (
        training_batches(deadly, size=SIZE, batch_size=2, augment=Augment(), seed=0, workers=2)
        if training
        else ordered_batches(deadly, size=SIZE, batch_size=1, workers=2)
    )
    begun = time.monotonic()
    with pytest.raises(DataError, match=r"a process that decodes images has died .*no memory left") as error:
        list(islice(batches, 100))
    assert error.value.setting == "workers"
    assert time.monotonic() - begun < 10
    assert not multiprocessing.active_children()
    assert signal.getsignal(signal.SIGCHLD) is before


def test_workers_end_with_what_is_done_with_their_batches(source):
    """Whether it is left early, fails, or has been told to stop by a signal that they do not heed."""
    for reaction in (lambda: None, lambda: [os.kill(child.pid, signal.SIGTERM) for child in children()]):
        batches = training_batches(source, size=SIZE, batch_size=2, augment=Augment(), seed=0, workers=2)
        next(batches)
        assert len(children()) == 2
        reaction()
        begun = time.monotonic()
        batches.close()
        assert not children()
        assert time.monotonic() - begun < 5


def children() -> list:
    return multiprocessing.active_children()


FAILING = """
import sys
from pathlib import Path
from softvq.data.images import Augment
from softvq.data.loader import training_batches
from softvq.data.sources import Folder
batches = training_batches(Folder(Path(sys.argv[1])), size=8, batch_size=2, augment=Augment(), seed=0, workers=2)
next(batches)
kept = [batches]  # as a traceback keeps the frames of those who hold it
raise KeyError("a bug")
"""


def test_a_process_that_fails_with_workers_ends(source):
    begun = time.monotonic()
    command = [sys.executable, "-c", FAILING, str(source.root)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stderr.rstrip().endswith("KeyError: 'a bug'")
    assert time.monotonic() - begun < 30  # most of it the import
