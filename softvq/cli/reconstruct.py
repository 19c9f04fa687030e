"""softvq reconstruct."""

import sys
from pathlib import Path
from typing import Annotated

from softvq.cli import options as cli


def reconstruct(
    *images: Annotated[str, cli.option("Image files, folders, or data by name: emoji-val.", name="IMAGE")],
    model: cli.TokenizerName = cli.BUNDLED_TOKENIZER,
    out: Annotated[Path, cli.option("The picture: .png, .jpg or .webp.")] = Path("reconstruction.png"),
    save_latents: Annotated[Path | None, cli.option("Write the latents too, as safetensors.")] = None,
    fit: cli.Fit = "crop",
    num: Annotated[int | None, cli.Num, cli.option("So many images, evenly over them (default: all).")] = None,
    columns: cli.Columns = cli.Columns(),
    batch_size: cli.BatchSize = 16,
    shown: Annotated[int, cli.Whole, cli.option("Images in the picture at most.")] = 64,
    common: cli.Machine = cli.Machine(),
) -> cli.Outcome:
    """Encode and decode images; write a picture: original | reconstruction | error.

    ```
    softvq reconstruct photo.jpg
    softvq reconstruct photos/ --model runs/mine --out mine.png
    softvq reconstruct photo.jpg --save-latents photo.safetensors
    softvq decode photo.safetensors
    ```

    PSNR and SSIM compare clamped 8-bit images at the model's size, SSIM with a Gaussian window of sigma 1.5.
    """
    from softvq.decoding import save_latents as write_latents
    from softvq.evaluation.comparison import compare
    from softvq.figures import format_of, save_picture
    from softvq.files import check_writable
    from softvq.models import Coder, load_tokenizer
    from softvq.runtime import pick_device

    if not images:
        raise cli.Usage("which images? Give files, folders or emoji-val.")
    format_of(out)
    given = {Path(one).resolve() for one in images}
    for path in filter(None, (out, save_latents)):
        check_writable(path)
        if path.exists() and {path.resolve(), *path.resolve().parents} & given:
            raise cli.Usage(f"{path} is one of the images; name another file to write.")
    tokenizer = load_tokenizer(model).to(pick_device(common.device))
    coder = Coder(tokenizer, common.precision)
    compared = compare(
        coder,
        [columns.of(one) for one in images],
        fit=fit,
        batch_size=batch_size,
        shown=shown,
        num=num,
        latents=save_latents is not None,
    )
    for reason in compared.unreadable.values():
        print(f"skipped: {reason}", file=sys.stderr)
    save_picture(compared.picture, out)
    if compared.warning:
        print(compared.warning, file=sys.stderr)
    text = f"{compared}\npicture: {out}"
    if save_latents:
        write_latents(save_latents, compared.latents, [row["image"] for row in compared.rows], tokenizer)
        text += f"\nlatents: {save_latents}; {cli.try_next('decode', save_latents, common=common)}"
    return cli.Outcome({"model": str(model), **compared.to_dict(), "picture": str(out)}, text)
