"""Random numbers as functions of their purpose.

    rng(seed, Stream.AUGMENT, sample)       # a NumPy generator of its own

Every purpose has a stream, and every key has the same length: NumPy pads short keys with zeros, so that of keys of
different lengths two could be one ([7, 3] is [7, 3, 0]) and two purposes share their numbers.
"""

from enum import IntEnum, unique

import numpy as np

_WORD = 2**32


@unique
class Stream(IntEnum):
    """The purposes of random numbers, each with the numbers that say which image, step or batch they are for.

    A value must never be used twice.
    """

    ORDER = 1  # of the images in an epoch (epoch)
    SHARD_ORDER = 2  # of the shards in an epoch (epoch)
    SHARD_CONTENTS = 3  # order of the images in a shard (lane, number)
    AUGMENT = 4  # crop and flip of a training sample (sample)
    POSTERIOR = 5  # a quantizer's reparametrisation noise (sample)
    LATENT_NOISE = 6  # of the decoder's latents (sample)
    FAKE = 7  # DiffAug and view of what the discriminator sees (sample)
    REAL = 8
    STRONG_FAKE = 9
    STRONG_REAL = 10
    GENERATOR_FAKE = 11  # the same for the tokenizer's own adversarial term (sample)
    MIRROR = 12  # which of an image's two latents (sample)
    DENOISING = 13  # a generator's label dropout, time and noise (sample)
    DENOISING_BATCH = 14  # what a generator's batch shares (step)
    SAMPLE_NOISE = 15  # of a generated image (image)
    SAMPLE_CLASS = 16  # of a generated image, where classes are random (image)
    REFERENCE = 17  # which reference images precision and recall take


def rng(seed: int, stream: Stream, first: int = 0, second: int = 0) -> np.random.Generator:
    """Return a stream's generator for a seed and up to two numbers, each from 0 to 2⁶⁴ − 1.

    The two numbers say which image, step or batch the random numbers are for.
    """
    words = [int(stream)]
    for number in (seed, first, second):
        if not 0 <= number < _WORD**2:
            raise ValueError(f"seeds and numbers of random streams must be from 0 to 2^64 - 1, not {number}.")
        words += [number % _WORD, number // _WORD]
    return np.random.default_rng(np.array(words, dtype=np.uint32))
