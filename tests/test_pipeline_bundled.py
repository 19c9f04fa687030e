"""The generator that ships with the package: it loads, draws in seconds, and draws what it is asked for."""

import torch

from softvq import Generator, Tokenizer, hub

NAME = "emoji-sit"


def test_it_is_small_and_of_the_bundled_tokenizer():
    assert (hub.BUNDLED / NAME / hub.WEIGHTS).stat().st_size < 15e6
    about = Generator.from_pretrained(NAME).about
    assert about["tokenizer"]["fingerprint"] == Tokenizer.from_pretrained("softvq-emoji-64").fingerprint
    assert len(about["classes"]) == 9
    assert about["figures"]["images"] >= 360


def test_flags_are_wide_and_faces_are_yellow():
    """Two classes that can be told without a classifier: flags fill the middle rows, faces are mostly yellow."""
    from softvq.generators.base import Noise

    generator, tokenizer = Generator.from_pretrained(NAME), Tokenizer.from_pretrained("softvq-emoji-64")
    names = generator.about["classes"]
    labels = torch.tensor([names.index("flags")] * 6 + [names.index("smileys-emotion")] * 6)
    latents = generator.sample(labels, Noise(3, list(range(12)), generator.shape), generator.quick_sampling)
    with torch.no_grad():
        images = tokenizer.decode(latents).clamp(-1, 1)
    flags, faces = images[:6], images[6:]
    inked = lambda x: float(((x < 0.9).any(1)).float().mean())  # noqa: E731
    sides = [torch.cat([x[..., 24:40, :4], x[..., 24:40, -4:]], -1) for x in (flags, faces)]
    assert inked(sides[0]) > inked(sides[1])  # flags reach the sides
    yellow = ((faces[:, 0] - faces[:, 2]) > 0.4).float().mean()
    assert float(yellow) > 0.15
