"""The way from latents on disk back to images, for folders that `encode` wrote and files of `save_latents`.

decode("latents/", "decoded/", images=["tabby.png", 12])
decode("photo.safetensors", "decoded/")
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from softvq import progress as progresses
from softvq.config import nearest
from softvq.data.images import to_image
from softvq.data.latents import INDEX, Latents
from softvq.errors import ConfigError, DataError, ModelError, check_whole
from softvq.figures import save_picture
from softvq.files import check_writable, read_metadata, read_tensors, write_tensors
from softvq.models import AnyTokenizer, Coder, load_tokenizer, own_device

_SHOWN = 16  # images of a folder of latents, where none are named


@dataclass(frozen=True)
class _Stored:
    """Latents on disk.

    `count` is their number, `names` are those of their images (none where they are not known), `tokenizer` and
    `fingerprint` those of the tokenizer that made them, and `read` is a function that returns the latents of some
    numbers, (n, L, D) in float32.
    """

    count: int
    names: list[str]
    tokenizer: str | None
    fingerprint: str | None
    read: Callable[[Sequence[int]], Tensor]


def decode(
    latents: str | Path,
    out: str | Path,
    *,
    images: Sequence[str | int] = (),
    num: int | None = None,
    tokenizer: AnyTokenizer | str | Path | None = None,
    batch_size: int = 16,
    device: str | torch.device | None = None,
    precision: str = "auto",
    progress: bool | None = None,
) -> list[Path]:
    """Decode latents into PNG files in `out`, `000012-tabby.png` by number and name; return the files.

    `latents` is a folder that `encode` wrote, or a file of `save_latents`. `images` are names or numbers, from 0;
    without any, the first `num` are decoded (by default all of a file, 16 of a folder). `tokenizer` is by default the
    one that made the latents. `progress` is that of `softvq.progress`.

    Raise `DataError` when there are no such latents or images, and `ModelError` when the tokenizer makes other latents.
    """
    for name, number in (("batch_size", batch_size), ("num", 1 if num is None else num)):
        check_whole(name, number, 1)
    if images and num is not None:
        raise ConfigError("images are named, or the first `num` are decoded, not both.", setting="num")
    out, stored = Path(out), _open(Path(latents))
    check_writable(out, folder=True)
    most = num or (_SHOWN if Path(latents).is_dir() else stored.count)
    numbers = [_number(stored, one, latents) for one in images] or list(range(min(most, stored.count)))
    device = own_device(device, tokenizer)
    model = tokenizer or stored.tokenizer
    if model is None:
        raise ConfigError(f"{latents} does not say which tokenizer made it; name one.", setting="model")
    made_by = load_tokenizer(model) if isinstance(model, str | Path) else model
    _check(made_by.to(device), stored, latents, str(model) if isinstance(model, str | Path) else "the tokenizer")
    coder, written = Coder(made_by, precision), []
    with progresses.bar(len(numbers), "image", "decoding", show=progress) as done:
        for first in range(0, len(numbers), batch_size):
            chosen = numbers[first : first + batch_size]
            for number, image in zip(chosen, coder.decode(stored.read(chosen)), strict=True):
                name = f"-{Path(stored.names[number]).stem}" if stored.names else ""
                written.append(out / f"{number:06d}{name}.png")
                save_picture(to_image(image), written[-1])
            done(len(chosen))
    return written


def save_latents(
    path: str | Path, latents: Float[Tensor, "N L D"], names: Sequence[str], tokenizer: AnyTokenizer
) -> None:
    """Write normalised latents as safetensors, with the images' names, the tokenizer's and its fingerprint."""
    name = str(tokenizer.name)  # none, where it was neither saved nor loaded
    name = str(Path(name).resolve()) if name and Path(name).is_dir() else name
    made_by = {**({"model": name} if name else {}), "fingerprint": tokenizer.latent_fingerprint}
    write_tensors(Path(path), {"latents": latents}, {"names": json.dumps(list(names)), **made_by})


def _open(path: Path) -> _Stored:
    if (path / INDEX).is_file():
        return _folder(path)
    if path.is_dir():
        raise DataError(f"{path} holds no latents ({INDEX} is missing); give a folder that encode wrote, or a file.")
    if path.is_file() and path.suffix.lower() != ".safetensors":
        raise DataError(f"{path} is no file of latents (.safetensors); give one, or a folder that encode wrote.")
    tensors = read_tensors(path)
    if "latents" not in tensors or tensors["latents"].ndim != 3:
        raise DataError(f"{path} holds no tensor 'latents' of shape (N, L, D).")
    latents, metadata = tensors["latents"], read_metadata(path)
    if not len(latents):
        raise DataError(f"{path} holds the latents of no image.")
    if not latents.isfinite().all():
        raise DataError(f"{path} holds latents that are NaN or infinite; the file is damaged.")
    try:
        names = [str(name) for name in json.loads(metadata["names"])]
    except (KeyError, ValueError, TypeError):  # a file of another program
        names = []
    names = names if len(names) == len(latents) else []
    tokenizer, fingerprint = metadata.get("model"), metadata.get("fingerprint")
    return _Stored(len(latents), names, tokenizer, fingerprint, lambda numbers: latents[list(numbers)].float())


def _folder(path: Path) -> _Stored:
    cache = Latents(path)
    index = cache.index
    return _Stored(
        len(cache),
        cache.names,
        index.tokenizer,
        index.fingerprint,
        lambda numbers: torch.stack([cache.read(number, 0) for number in numbers]),
    )


def _number(stored: _Stored, wanted: str | int, where: str | Path) -> int:
    """Return the number of an image given by its whole name, its number, or its file's name (`tabby.png`, `tabby`)."""
    name = str(wanted)
    if name in stored.names:
        return stored.names.index(name)
    if name.isdecimal():
        if int(name) < stored.count:
            return int(name)
        raise DataError(f"{where} holds the images 0 to {stored.count - 1}, and none {name}.", setting="image")
    if not stored.names:
        raise DataError(
            f"{where} does not say its images' names; give numbers, 0 to {stored.count - 1}.", setting="image"
        )
    ends = [n for n, one in enumerate(stored.names) if name in (Path(one).name, Path(one).stem)]
    if len(ends) > 1:
        several = " or ".join(stored.names[n] for n in ends[:3])
        raise DataError(f"{where} holds {len(ends)} images called {name!r}: write {several}.", setting="image")
    if not ends:
        stems = (Path(one).stem for one in stored.names)
        hint = nearest(name, list(dict.fromkeys([*stored.names, *(stem for stem in stems if not stem.isdecimal())])))
        raise DataError(f"{where} holds no image {name!r}{hint}", setting="image")
    return ends[0]


def _check(tokenizer: AnyTokenizer, stored: _Stored, where: str | Path, called: str) -> None:
    own = (tokenizer.config.tokens, tokenizer.config.latent_dim)
    shape = tuple(stored.read([0]).shape[1:])
    if shape != own:
        raise ModelError(
            f"{where} holds latents of {shape[0]} × {shape[1]}, but {called} decodes {own[0]} × {own[1]}; give the "
            "model that made them.",
            setting="model",
        )
    if stored.fingerprint is not None and not tokenizer.makes(stored.fingerprint):
        raise ModelError(
            f"{where} holds latents of another tokenizer ({stored.tokenizer}, {stored.fingerprint}) than {called} "
            f"({tokenizer.latent_fingerprint}); they would be decoded to noise.",
            setting="model",
        )
