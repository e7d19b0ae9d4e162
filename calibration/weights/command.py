"""`ris-calibrate weights`. Thin over the entry point that runs the PyTorch reference."""

from __future__ import annotations

import functools
import importlib.util
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from ris import pip_install
from ris.calibration.asking import Asked, sample_options, threads_option
from ris.engines.errors import RisError
from ris.runtime.bundle_folder import behind_links
from ris.runtime.commands.console import (
    LeftOut,
    RisCommand,
    disk_errors,
    print_json,
    require_writable,
    track,
)
from ris.runtime.commands.options import Command, Option, add_options
from ris.runtime.commands.weight_files import choice_options, family_option, weight_file_options
from ris.runtime.reference import family_choices, pytorch_reference

_MODEL: tuple[Option, ...] = (
    click.option(
        "--model",
        metavar="NAME",
        help="A published model, fetched where it is not here yet; as of ris-export.",
    ),
    click.option(
        "--accept-licence",
        metavar="WORD",
        help="With --model: terms that you accept, where the model asks for it.",
    ),
    click.option(
        "--weight-format",
        multiple=True,
        metavar="[GRAPH=]FORMAT",
        default=("int4",),
        show_default="int4",
        help="What ris-export will store matrices in, int8 or int4: of the graphs that the family "
        "names, or of GRAPH; may be repeated.",
    ),
    click.option(
        "--random-weights",
        type=int,
        metavar="SEED",
        help="An untrained model with made-up weights.",
    ),
    click.option(
        "--preset",
        metavar="NAME",
        help="The architecture. Default: what the checkpoint says.",
    ),
    click.option(
        "--variant",
        type=click.Choice(["cls", "category"]),
        help="What the sparse branch asks with. Default: what the checkpoint says.",
    ),
    click.option("--supplement", is_flag=True, help="The architecture of the paper's supplement."),
    click.option(
        "--vocabulary",
        type=click.Path(path_type=Path, exists=True, dir_okay=False),
        help="The model's vocabulary. Default: as of ris-export.",
    ),
)


def _model_options(command: Command) -> Command:
    """What says which model, as of ris-export; the command gets it as one argument, `model`."""
    words = "model accept_licence weight_format random_weights preset variant supplement vocabulary"
    names = (*words.split(), "family", "files", "chosen")

    def take(given: dict[str, Any]) -> dict[str, Any]:
        found = {name: given.pop(name) for name in names}
        found["files"] = {name: file for name, file in found["files"].items() if file is not None}
        return found

    others = (weight_file_options(), family_option(), choice_options(family_choices()))
    command = add_options(command, _MODEL, "model", take)
    for add in others:
        command = add(command)
    return command


@click.command("weights", cls=RisCommand)
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    help="The file to write, as rounded.safetensors.",
)
@_model_options
@sample_options(default=128)
@click.option(
    "--memory",
    type=click.FloatRange(min=0, min_open=True),
    metavar="GB",
    default=4.0,
    show_default=True,
    help="For the sums over inputs. With less the samples are run more often.",
)
@threads_option
@click.option("--force", is_flag=True, help="Replace the file if it exists.")
@click.option("--json", "as_json", is_flag=True, help="Print the errors as JSON.")
def weights(
    out: Path,
    model: dict[str, Any],
    asked: Asked,
    memory: float,
    threads: int | None,
    force: bool,
    as_json: bool,
) -> None:
    """Chooses the levels of weights in 8 or 4 bits by GPTQ, on IMAGES (files, folders, JSONL) or
    drawn scenes, for `ris-export --weight-format int4 --weights-from FILE`.

    The model is named as for ris-export. Each matrix is rounded so that its products with the
    inputs that it has there change least; where the nearest levels change them less, those are
    kept. A stopped run goes on where it was when the same command is given again.

    \b
    Examples:
      ris-calibrate weights --preset tiny-evfsam --random-weights 0 --out rounded.safetensors
      ris-calibrate weights photos -e "left man" --checkpoint LISA-7B-v1 \\
          --clip-checkpoint clip-vit-large-patch14 --out rounded.safetensors
    """
    _require_packages()
    asked.check()
    if out.exists() and not force:
        raise RisError(f"{out} exists; choose another --out, or --force to replace it")
    if not behind_links(out).parent.is_dir():
        raise RisError(f"{out.parent}: no such folder; make it, or choose another --out")
    require_writable(behind_links(out).parent, folder=True)
    if "auto" in asked.categories:
        raise RisError("--category auto needs a bundle; name the category of each expression")

    left = LeftOut()
    running = {
        "memory": int(memory * 1e9),
        "threads": threads,
        "track": track,
        "say": lambda line: click.echo(line, err=True),
    }
    with disk_errors(out):
        # the samples are made when the model's options are found to fit together
        samples = functools.partial(asked.sample_set, None, left)
        errors = pytorch_reference().calibrate_weights(model, samples, out, running)
    if as_json:
        print_json(_report(errors), indent=1)
    else:
        click.echo("\n".join(_lines(errors, out, model["weight_format"])))
    left.finish("the levels were chosen on the others")


def _require_packages() -> None:
    for package in ("torch", "onnx", "safetensors", "threadpoolctl"):
        if importlib.util.find_spec(package) is None:
            raise RisError(f"ris-calibrate weights needs {package}: {pip_install('cpu', 'export')}")


def _report(errors: Mapping[str, tuple[float, float]]) -> dict[str, Any]:
    """The errors for programs; None for a matrix whose inputs were not seen."""
    return {
        name: None if math.isnan(nearest) else {"nearest": nearest, "chosen": chosen}
        for name, (nearest, chosen) in errors.items()
    }


def _lines(
    errors: Mapping[str, tuple[float, float]], out: Path, formats: tuple[str, ...]
) -> list[str]:
    """What was written, the errors of each matrix, and what to do next."""
    width = max(map(len, errors))
    table = [f"  {'':<{width}}  nearest   chosen"]
    table += [
        f"  {name:<{width}}  {nearest:.2e}  {chosen:.2e}"
        if not math.isnan(nearest)
        else f"  {name:<{width}}  not seen"
        for name, (nearest, chosen) in errors.items()
    ]
    better = sum(chosen < nearest for nearest, chosen in errors.values())
    seen = [both for both in errors.values() if not math.isnan(both[0])] or [(0.0, 0.0)]
    means = [sum(each) / len(seen) for each in zip(*seen, strict=True)]
    words = " ".join(f"--weight-format {word}" for word in formats)
    return [
        f"Wrote {out}: {better} of {len(errors)} matrices with other than the nearest levels",
        "Relative error of each matrix's products with the calibration's inputs:",
        *table,
        f"  {'mean':<{width}}  {means[0]:.2e}  {means[1]:.2e}",
        f"Next, with the same model:\n  ris-export {words} --weights-from {out}",
    ]
