"""`ris-train`: trains a model on drawn scenes or on data sets. Thin over `Trainer`."""

from __future__ import annotations

import importlib.util
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bar

from ris import pip_install
from ris.data.datasets import DATASETS
from ris.engines.errors import RisError, Skipped
from ris.runtime.commands.console import LeftOut, RisCommand, require_writable
from ris.runtime.commands.named_files import fetch_given, would_download
from ris.runtime.hub.given import given_names
from ris.training.command_options import run_options
from ris.training.options import (
    DataOptions,
    HardwareOptions,
    ModelOptions,
    RunOptions,
    parse_mix,
)
from ris.training.recipe import RECIPES, changed

if TYPE_CHECKING:
    from ris.training.loop import Trainer
    from ris.training.prepare import Request
    from ris.training.run_folder import Progress

PACKAGES = (
    "torch",
    "segment_anything",
    "open_clip",
    "transformers",
    "accelerate",
    "matplotlib",
    "scipy",
    "pycocotools",
)
"""What the command needs beyond the runtime."""

DATA_ALONE = {
    "--batch": "samples",
    "--group": "group",
    "--validation-samples": "validation_samples",
}
"""Options that drawn scenes have no use for, and the arguments that they become."""

SCENES_ALONE = {"--batch-images": "images_", "--batch-expressions": "expressions"}
"""Options that data sets have no use for, and the arguments that they become."""


@click.command(cls=RisCommand)
@run_options
def main(
    files: dict[str, Path | None], out: Path, restart: bool, dry_run: bool, **given: Any
) -> None:
    """Trains a model; a run that was stopped or killed goes on where its state was saved.

    \b
    Examples:
      ris-train --out checkpoints/demo
      ris-train --data grefcoco --root data --out checkpoints/grefcoco --features features \\
          --sam-checkpoint sam-vit-b --clip-checkpoint clip-vit-l-14-336 \\
          --bert bert-base-uncased --device cuda
      torchrun --nproc-per-node 4 --no-python ris-train --device cuda ...
    """
    _require_packages()
    request = _request(files, given)

    from ris.training.devices import is_main, require_device
    from ris.training.prepare import prepare_run

    if not dry_run:  # that lists all that is missing
        require_writable(out, folder=True)
        require_device(request.hardware.device)
    request = _with_named(request, dry_run, quiet=not is_main())
    left = LeftOut()
    untold: list[str] = []  # what others than the main process leave out
    skipped: Skipped = left if is_main() else untold.append
    if dry_run:
        from ris.training.dry_run import dry_run as describe

        describe(out, request, given["validate_every"], click.echo, skipped)
        return
    trainer = prepare_run(out, request, skipped)
    main_process = trainer.accelerator.is_main_process
    if restart and out.exists() and main_process:
        _put_aside(out)
    trainer.accelerator.wait_for_everyone()
    resumed = trainer.resume(given["learning_rate"])
    if main_process:
        _say_beginning(trainer, resumed)
    _run(trainer, given, skipped)
    if main_process:
        _say_next(out, request)
    found = _of_all(untold)
    if main_process:
        for sentence in found:
            left(sentence)
    trainer.accelerator.end_training()
    if main_process:
        left.finish("the model was trained on the others")


def _of_all(untold: list[str]) -> list[str]:
    """What all processes have left out untold, each once."""
    from accelerate.utils import gather_object

    return list(dict.fromkeys(gather_object(list(dict.fromkeys(untold)))))


def _request(files: dict[str, Path | None], given: dict[str, Any]) -> Request:
    """What the options say. Raises RisError for options that do not go together."""
    from ris.training.prepare import Request

    data = DataOptions(
        mix=parse_mix(given["data"]),
        root=given["root"],
        images=given["images"],
        validation=given["validation"],
        validation_samples=given["validation_samples"] or DataOptions.validation_samples,
        protocol=given["protocol"],
    )
    data.check()
    whole = files["checkpoint"] is not None
    model = ModelOptions(
        preset=given["preset"] or (None if whole else "demo" if data.drawn else "vitb-vitl336"),
        variant=given["variant"] or (None if whole else data.variant),
        supplement=given["supplement"],
        vocabulary=given["vocabulary"],
        files=files,
        random_encoders=given["random_encoders"],
    )
    _check(data, given, model.variant)
    options = RunOptions(
        given["features"], given["keep"], given["metric"], tuple(given["trackers"])
    )
    options.check()
    recipe = changed(
        RECIPES[given["recipe"] or ("demo" if data.drawn else "supplement")],
        images=given["images_"],
        **{
            name: given[name]
            for name in ("steps", "lessons", "learning_rate", "samples", "group", "expressions")
        },
        seed=given["seed"],
    )
    return Request(
        recipe=recipe.for_data(data.names[0] if len(data.mix) == 1 else ""),
        data=data,
        model=model,
        hardware=HardwareOptions(
            given["device"], given["threads"], given["workers"], given["fewer_activations"]
        ),
        options=options,
    )


def _with_named(request: Request, dry_run: bool, *, quiet: bool) -> Request:
    """The request with the paths of what was given by name.

    Licence and source are said first, unless the process is to be `quiet`. Raises RisError where
    something cannot be fetched, and in a dry run, which downloads nothing, where it is not here.
    """
    data = request.data
    names = given_names(
        request.model.files, {"root": data.root, "images": data.images}, family="dfam"
    )
    if dry_run and (files := names.missing()):
        for file in files:
            click.echo(f"missing: {would_download(file)}, which a run downloads from {file.place}")
        raise RisError(f"{len(files)} missing, named above; nothing was measured")
    paths = fetch_given(names, quiet=quiet)
    weights = {role: paths.get(role, path) for role, path in request.model.files.items()}
    root, images = paths.get("root", data.root), paths.get("images", data.images)
    return replace(
        request,
        model=replace(request.model, files=weights),
        data=replace(data, root=root, images=images),
    )


def _require_packages() -> None:
    """Raises RisError where a package is not installed."""
    for package in PACKAGES:
        if importlib.util.find_spec(package) is None:
            raise RisError(f"ris-train needs {package}: {pip_install('export', 'train')}")


def _check(data: DataOptions, given: dict[str, Any], variant: str | None) -> None:
    """Raises RisError for options that do not go together."""
    if given["lessons"] and not data.drawn:
        raise RisError(
            "--lessons belong to --data scenes, which know what every patch of an image shows"
        )
    if data.drawn and variant == "category":
        raise RisError(
            "--variant category needs a data set with COCO categories; some things in the scenes"
            " have none"
        )
    idle = DATA_ALONE if data.drawn else SCENES_ALONE
    for option, name in idle.items():
        if given[name] is not None:
            where = "data sets" if data.drawn else "--data scenes"
            raise RisError(f"{option} belongs to {where}; here it would change nothing")
    if data.drawn and given["features"]:
        raise RisError("--features belong to data sets, --data scenes draws its own images")


def _put_aside(out: Path) -> None:
    """Renames the run that is there. Raises RisError where another process still writes it."""
    from ris.training.run_folder import writing

    with writing(out):
        os.replace(out, _free_name(out))


def _say_beginning(trainer: Trainer, resumed: bool) -> None:
    begun = f"goes on at step {trainer.step}" if resumed else "a new run"
    click.echo(f"{trainer.keeper.folder}: {begun}, to step {trainer.recipe.steps}")
    processes = trainer.accelerator.num_processes
    if processes > 1:
        click.echo(f"{processes} processes share each step's groups")
    precision = trainer.accelerator.mixed_precision
    if trainer.recipe.mixed_precision and precision == "no":
        click.echo("this processor has no bfloat16: computes in FP32")
    elif precision == "fp16":
        click.echo("this GPU has no bfloat16: computes in FP16, with a scaled loss")


def _say_next(out: Path, request: Request) -> None:
    weights, words, model = out / "model.safetensors", "", request.model
    if model.vocabulary:
        words = f" --vocabulary {model.vocabulary}"
    elif model.files["bert"]:
        words = f" --bert {model.files['bert']}"
    click.echo(f"Wrote {weights}, and {out / 'best.safetensors'}, which validated best")
    click.echo(f"Next:\n  ris-export --checkpoint {weights}{words}")
    data = request.data
    if data.validates_on in DATASETS:
        split = f" --split {data.validation_split}" if data.validation_split != "val" else ""
        images = f" --images {data.images}" if data.images else ""
        click.echo(
            f"and, over the whole split:\n  ris-eval run ris-bundle --data {data.validates_on}"
            f"{split} --root {data.root}{images} --protocol all"
        )


def _free_name(path: Path) -> Path:
    """The first of `path`.old, .old1, .old2 and so on that does not exist."""
    numbers = (path.with_name(f"{path.name}.old{n or ''}") for n in range(10_000))
    return next(candidate for candidate in numbers if not candidate.exists())


def _run(trainer: Trainer, given: dict[str, Any], skipped: Skipped) -> None:
    """Runs the trainer, with its log on the terminal and as a picture in its folder."""
    console = Console()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    shown = console.is_terminal and trainer.accelerator.is_main_process
    with Bar(*columns, console=console, transient=True, disable=not shown) as bar:
        total = given["stop"] or trainer.recipe.steps
        task = bar.add_task("training", total=total, completed=trainer.step)

        def report(line: Progress) -> None:
            bar.update(task, completed=line.step)
            # no markup: a note may have words of others
            bar.console.print(_words(line), highlight=False, soft_wrap=True, markup=False)
            if line.validation:
                _draw(trainer.keeper.folder)

        trainer.run(
            log_every=given["log_every"],
            save_every=given["save_every"],
            validate_every=given["validate_every"],
            stop=given["stop"],
            report=report,
            skipped=skipped,
        )


def _draw(folder: Path) -> None:
    """The log as a picture, which no run ends for."""
    from ris.training.plot import plot_log

    try:
        plot_log(folder / "log.jsonl", folder / "log.png")
    except (OSError, ValueError) as error:
        click.echo(f"{folder / 'log.png'} was not drawn: {error}", err=True)


def _words(line: Progress) -> str:
    """A line of the log for people; the validation's figures in lines of their own."""
    now = time.strftime("%H:%M:%S")
    if line.note is not None:
        return f"{now} step {line.step}  {line.note}"
    losses = _figures(line.losses)
    text = f"{now} step {line.step}  {losses}  rate {line.rate:.1e}  {line.seconds:.0f} s"
    if line.skipped:
        text += f"  {line.skipped} steps skipped: the gradient was not finite"
    for kind, figures in (line.validation or {}).items():
        text += f"\n  {kind:<10} {_figures(figures)}"
    return text


def _figures(values: dict[str, float]) -> str:
    return " ".join(f"{name} {value:.3f}" for name, value in values.items())


if __name__ == "__main__":
    main()
