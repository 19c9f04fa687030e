"""softvq demo."""

from pathlib import Path
from typing import Annotated

from softvq.cli.common import BUNDLED_TOKENIZER, Common, Machine, Told, Usage, Workers, option

_RECIPE = "emoji-64-quick"


def demo(
    *,
    train: Annotated[bool, option(f"Train {_RECIPE} from scratch first (some minutes), and use that.")] = False,
    steps: Annotated[int | None, option("With --train: how many steps (default: the recipe's).")] = None,
    out: Annotated[Path, option("The folder to write.")] = Path("softvq-demo"),
    workers: Workers = 2,
    machine: Machine = Machine(),
    common: Common = Common(),
) -> Told:
    """Reconstruct the bundled validation images with the bundled tokenizer: no network, no GPU, no download.

    Writes the picture and prints PSNR and SSIM beside PCA and box-downsampling with the same number of floats. --train
    first trains the small recipe from scratch for some minutes and uses the result.
    """
    from softvq.evaluation.comparison import demonstrate
    from softvq.figures import save_picture
    from softvq.files import check_writable
    from softvq.models import Coder, load_tokenizer
    from softvq.runtime import pick_device

    if steps is not None and not train:
        raise Usage("--steps goes with --train.")
    picture = out / "reconstruction.png"
    check_writable(picture)
    model = _trained(steps, out / "run", workers, machine) if train else BUNDLED_TOKENIZER
    coder = Coder(load_tokenizer(model).to(pick_device(machine.device)), machine.precision)
    shown = demonstrate(coder, f"softvq ({model})")
    save_picture(shown.picture, picture)
    result = {"model": str(model), **shown.to_dict(), "picture": str(picture)}
    return Told(result, f"{shown}\npicture: {picture}")


def _trained(steps: int | None, out: Path, workers: int, machine: Machine) -> str:
    """Train the quick recipe; return the model's folder."""
    from softvq.recipes.opening import open_recipe
    from softvq.training.options import Intervals, RunOptions
    from softvq.training.run import train
    from softvq.training.tokenizer import TokenizerTask

    recipe = open_recipe(_RECIPE, changes={} if steps is None else {"steps": steps})
    options = RunOptions(out, machine.device, machine.precision, workers=workers, intervals=Intervals(samples=200))
    return str(train(TokenizerTask(recipe), options))
