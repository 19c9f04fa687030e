"""Teachers and perceptual networks by name: dictionaries that a file of your own may add to.

For example:

    TEACHERS["mine"] = Named(lambda image_size, patch_size, file, trained: MyTeacher(file))
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import nn

from softvq.errors import ConfigError
from softvq.pretrained import lite, lpips, vit
from softvq.pretrained.lite import LitePerceptual, LiteTeacher
from softvq.pretrained.lpips import LPIPS


@dataclass(frozen=True)
class Named:
    """A maker of a frozen network.

    `from_file`: True when its weights are downloaded, or given as a file, and do not come with a package.
    """

    make: Callable[..., nn.Module]
    from_file: bool = True


def _vit_teacher(name: str, image_size: int, patch_size: int, file: Path | None, trained: bool) -> nn.Module:
    if trained:
        return vit.Teacher.load(name, image_size, patch_size, file)
    return vit.Teacher(vit.untrained(name, image_size, patch_size), vit.describe(name).statistics)


def _lite_teacher(name: str, image_size: int, patch_size: int, file: Path | None, trained: bool) -> nn.Module:
    return LiteTeacher(name, patch_size, weights=trained)


def _lpips(name: str, file: Path | None, trained: bool) -> nn.Module:
    return LPIPS.load(name, file) if trained else LPIPS.untrained(name)


def _lite_perceptual(name: str, file: Path | None, trained: bool) -> nn.Module:
    return LitePerceptual(name, weights=trained)


# (image_size, patch_size, file, trained) -> images (B, 3, H, W) in [-1, 1] -> features (B, N, width) of the patches,
# row by row; the network has `width`. Without `trained` whatever weights: to count what a run costs.
TEACHERS: dict[str, Named] = {
    **{name: Named(partial(_vit_teacher, name)) for name in vit.MODELS},
    **{name: Named(partial(_lite_teacher, name), from_file=False) for name in lite.NAMES},
}

# (file, trained) -> images, targets (B, 3, H, W) in [-1, 1] -> a distance each
PERCEPTUAL: dict[str, Named] = {
    **{name: Named(partial(_lpips, name)) for name in (lpips.NAME, lpips.TINY)},
    **{name: Named(partial(_lite_perceptual, name), from_file=False) for name in lite.NAMES},
}


def check_used(pretrained: Mapping[str, Path], used: Collection[str]) -> None:
    """Raise `ConfigError` when a file is given for a network that is not used."""
    if unused := [name for name in pretrained if name not in used]:
        raise ConfigError(
            f"a file is given for {unused[0]}, which is not used; this uses {', '.join(used) or 'none'}.",
            setting="pretrained",
        )
