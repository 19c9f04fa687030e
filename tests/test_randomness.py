"""Streams of random numbers: no two purposes, seeds or samples share one."""

import itertools
import re
from pathlib import Path

import pytest

import softvq
from softvq.data.order import Order
from softvq.generators.base import Noise
from softvq.randomness import Stream, rng


def first(*key) -> float:
    return rng(*key).random()


def test_a_stream_is_a_function_of_its_key():
    assert first(3, Stream.AUGMENT, 7) == first(3, Stream.AUGMENT, 7, 0) == first(3, Stream.AUGMENT, 7)


def test_no_two_keys_share_their_numbers():
    """Zeros too, which NumPy pads short keys with, and numbers of more than 32 bits, which it splits."""
    numbers = (0, 1, 2, 2**32, 2**32 + 1, 2**63 - 1)
    keys = list(itertools.product(numbers, (Stream.ORDER, Stream.AUGMENT, Stream.SAMPLE_NOISE), numbers, numbers))
    assert len({first(*key) for key in keys}) == len(keys)


def test_the_purposes_of_one_seed_and_number_differ():
    assert len({first(5, stream, 2) for stream in Stream}) == len(Stream)


def test_sampling_noise_is_not_the_order_of_an_epoch():
    """Both were keyed [seed, number, …] of different lengths once: image 0's noise came from epoch 0's stream."""
    noise = Noise(0, [0], (4,))().flatten().tolist()
    assert noise == rng(0, Stream.SAMPLE_NOISE, 0).standard_normal(4).tolist()
    assert noise != rng(0, Stream.ORDER, 0).standard_normal(4).tolist()
    assert Order(20, 3).permutation(4).tolist() == rng(3, Stream.ORDER, 4).permutation(20).tolist()


@pytest.mark.parametrize("key", [(-1, Stream.AUGMENT), (2**64, Stream.AUGMENT), (0, Stream.AUGMENT, -1)])
def test_numbers_that_no_key_holds_are_refused(key: tuple):
    with pytest.raises(ValueError, match="from 0 to 2"):
        rng(*key)


def test_all_random_numbers_of_numpy_come_from_here():
    """A generator made elsewhere would have a key of its own making."""
    for path in Path(softvq.__file__).parent.rglob("*.py"):
        if path.name not in ("randomness.py", "distribution.py"):  # KID's subsets are torch-fidelity's own
            assert not re.search(r"default_rng\(|np\.random\.seed|RandomState", path.read_text()), path
