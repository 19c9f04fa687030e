"""softvq train tokenizer and generator."""

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Group, Parameter

from softvq.cli import options as cli

Kind = Literal["tokenizer", "generator"]
Parallel = Literal["ddp", "fsdp"]
RUN = Group("Run", sort_key=1)
Words = Annotated[
    str,
    Parameter(
        name="RECIPE",
        allow_leading_hyphen=True,
        help="A recipe's name, file or model's folder (softvq recipes lists them), and --FIELD VALUE for its fields.",
    ),
]


@Parameter(name="*", group=RUN)
@dataclass(frozen=True)
class Run:
    """The options of a run: none changes its result, but for the precision and torch.compile."""

    out: Annotated[Path | None, cli.option("The run's folder (default: runs/RECIPE).")] = None
    resume: Annotated[bool, cli.option("Refuse to start anew where there is no run to go on with.")] = False
    dry_run: Annotated[bool, cli.option("Print what a step takes, in memory and operations, and stop.")] = False
    workers: cli.Workers = 2
    pretrained: cli.Pretrained = ()
    parallel: Annotated[Parallel, cli.option("With torchrun: a copy of the model each, or shared out.")] = "ddp"
    most_bad: Annotated[float, cli.option("The share of images that may be unreadable.")] = 0.1
    recompute: Annotated[bool, cli.option("Keep less for the gradients: less memory, more time.")] = False
    compile: Annotated[bool, cli.option("Use torch.compile, which pays on GPUs, not on CPUs.")] = False
    wandb: Annotated[str | None, cli.option("A project at Weights & Biases (pip install 'softvq[wandb]').")] = None
    log_every: Annotated[int, cli.Whole, cli.option("Steps between two lines of the log.")] = 20
    checkpoint_every: Annotated[int, cli.Whole, cli.option("Steps between two checkpoints.")] = 500
    sample_every: Annotated[int, cli.Whole, cli.option("Steps between two sample grids, with validation.")] = 1000
    val_images: Annotated[int, cli.Whole, cli.option("Validate on so many images, always the same.")] = 1000

    def options(self, recipe: Any, named: str, command: list[str], common: cli.Machine) -> Any:
        """Return the library's options of the run of a recipe that was given as `named`."""
        from softvq.recipes.opening import is_file
        from softvq.training.options import Intervals, RunOptions

        own = is_file(named) and Path(named).name != "config.json"  # a model's
        out = self.out or Path("runs") / (Path(named).stem if own else recipe.name)
        if self.resume and not any((out / "checkpoints").glob("step-*")):
            raise cli.Usage(f"--resume: {out} holds no run to resume; leave --resume out to start one.")
        for name in ("log_every", "checkpoint_every", "sample_every", "val_images"):
            if getattr(self, name) < 1:
                raise cli.Usage(f"--{name.replace('_', '-')} must be at least 1, not {getattr(self, name)}.")
        return RunOptions(
            out,
            common.device,
            common.precision,
            workers=self.workers,
            pretrained=cli.pretrained_files(self.pretrained),
            parallel=self.parallel,
            most_bad=self.most_bad,
            recompute=self.recompute,
            compile=self.compile,
            command=shlex.join(command),
            intervals=Intervals(self.log_every, self.checkpoint_every, self.sample_every),
            wandb=self.wandb,
            val_images=self.val_images,
        )


def tokenizer(
    *words: Words,
    rfid: Annotated[str | None, cli.option("Measure rFID when validating: inception-2015-12-05.")] = None,
    columns: cli.Columns = cli.Columns(),
    run: Run = Run(),
    common: cli.Machine = cli.Machine(),
) -> cli.Outcome:
    """Train a tokenizer from a recipe.

    ```
    softvq train tokenizer emoji-64-quick
    softvq train tokenizer emoji-64 --data my_photos/ --steps 5000 --optimizer.lr 1e-3
    softvq train tokenizer emoji-64 --tokenizer.quantizer AE --weights '{"reconstruction": 1}'
    softvq train tokenizer softvq-l-64 --data imagenet/train --val imagenet/val
    softvq train tokenizer softvq-l-64 --data 'shards/train-{0000..1023}.tar' --val 'shards/val-*.tar'
    softvq train tokenizer softvq-l-64 --dry-run
    softvq train tokenizer mine.yaml
    softvq train tokenizer softvq-b-64 --init SoftVQVAE/softvq-b-64 --data my_photos/ --steps 20000
    ```

    Every field of the recipe can be set: --FIELD VALUE, dotted for nested ones (`softvq recipes NAME` shows them all).
    A run that was stopped goes on where its last checkpoint stands when the same command is given again; with more
    --steps a run that was stopped or has ended is made longer. Several GPUs or machines: torchrun --nproc-per-node 8
    -m softvq train tokenizer … (the batch size stays the same).

    A field that is null takes JSON: `--alignment '{"teacher": "vit_base_patch14_dinov2.lvd142m"}'`; its term then needs
    a weight: `--weights '{"reconstruction": 1, "kl": 0.01, "alignment": 0.1}'`. Pretrained networks that a recipe names
    are downloaded from the hub once, or read from files (--pretrained). docs/training.md explains more fields.
    """
    from softvq.training.tokenizer import TokenizerTask

    return _train("tokenizer", words, lambda recipe, _: TokenizerTask(recipe, rfid=rfid), run, common, columns)


def generator(*words: Words, run: Run = Run(), common: cli.Machine = cli.Machine()) -> cli.Outcome:
    """Train a generator (SiT, DiT or MAR) from a recipe, on latents that `softvq encode` made.

    ```
    softvq encode imagenet/train --model SoftVQVAE/softvq-l-64 --out latents
    softvq train generator sit-xl-softvq-l-64 --data latents --val val_latents
    softvq train generator sit-xl-softvq-l-64 --data latents --init SoftVQVAE/sit-xl_softvq-l-64
    softvq train generator emoji-sit --data latents --dry-run
    ```

    Fields, stopping, resuming and lengthening are as softvq train tokenizer --help explains. With --init training goes
    on from another generator's weights; for another number of classes their embeddings start anew.
    """
    from softvq.training.generator import GeneratorTask

    def task(recipe: Any, fields: dict[str, str]) -> Any:
        return GeneratorTask(recipe, tokenizer=recipe.tokenizer if "tokenizer" in fields else None)

    return _train("generator", words, task, run, common)


def _train(
    kind: Kind, words: tuple[str, ...], task: Any, run: Run, common: cli.Machine, columns: cli.Columns = cli.Columns()
) -> cli.Outcome:
    from softvq.files import read_json
    from softvq.training.plan import plan, show_plan
    from softvq.training.run import train

    named, fields = recipe_and_fields(words, kind)
    if kind == "tokenizer" and fields.get("data", "emoji") != "emoji" and "val" not in fields:
        fields["val"] = "null"  # the recipe's validation images are of another kind than yours
        print("validating on nothing: give --val FOLDER (or --val emoji-val) to measure as it goes", file=sys.stderr)
    recipe = _recipe(named, kind, fields)
    if columns != cli.Columns():
        recipe = replace(recipe, data=columns.of(recipe.data), val=recipe.val and columns.of(recipe.val))
    command = ["softvq", "train", kind, *words, *columns.words, *common.words]
    options = run.options(recipe, named, command, common)
    if run.dry_run:
        planned = plan(task(recipe, fields), options)
        return cli.Outcome(planned.to_dict(), show_plan(planned))
    folder = train(task(recipe, fields), options)
    about = read_json(folder / "config.json")["about"]
    then: tuple = ("sample", "--model", folder)
    if kind == "tokenizer":
        then = ("reconstruct", recipe.val or recipe.data, "--num", 16, "--model", folder)
    return cli.Outcome(
        {"model": str(folder), "steps": recipe.steps, "figures": about.get("figures")},
        f"the {kind} is in {folder}; {cli.try_next(*then, common=common)}",
    )


def recipe_and_fields(words: Sequence[str], kind: Kind = "tokenizer") -> tuple[str, dict[str, str]]:
    """Return the recipe's name and its fields: pairs `--field value` or `--field=value`, before or behind it."""
    named, fields, rest = [], {}, list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            named.append(word)
            continue
        name, equals, value = word[2:].partition("=")
        if not equals:
            if not rest or rest[0].startswith("--"):
                raise cli.Usage(f"--{name} needs a value.")
            value = rest.pop(0)
        fields[name.replace("-", "_")] = value
    if len(named) != 1:
        problem = f"{named[1]!r} is one word too many" if named else "which recipe? `softvq recipes` lists them"
        raise cli.Usage(f"{problem}; write softvq train {kind} RECIPE --FIELD VALUE …")
    return named[0], fields


def _recipe(named: str, kind: Kind, fields: dict[str, str]) -> Any:
    """Return the recipe with the fields that were given as options."""
    from dataclasses import fields as fields_of

    from softvq import config as configs
    from softvq.recipes.opening import open_recipe

    try:
        return open_recipe(named, kind, fields)
    except configs.UnknownField as error:
        own = [field.name.replace("_", "-") for part in (Run, cli.Machine, cli.Common) for field in fields_of(part)]
        hint = configs.nearest(error.path, [*error.valid, *own], "--", every=f"`softvq recipes {named}`")
        raise cli.Usage(f"unknown option --{error.path}{hint}") from None
