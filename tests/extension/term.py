"""This adds a loss term: how much the edges of a reconstruction differ from those of its image."""

from softvq.losses.terms import TERMS


def edges(images):
    return images.diff(dim=-1)[..., 1:, :], images.diff(dim=-2)[..., 1:]


def difference_of_edges(seen):
    pairs = zip(edges(seen.outputs), edges(seen.images), strict=True)
    return sum((made - real).abs().mean() for made, real in pairs)


TERMS["edges"] = difference_of_edges
