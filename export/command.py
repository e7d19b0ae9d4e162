"""`ris-export`: a model in, a bundle out. Thin over `export_bundle`."""

from __future__ import annotations

import importlib.util
import json
import shlex
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ris import pip_install
from ris.engines import ENGINE_NAMES, EngineSpec, create
from ris.engines.errors import RisError
from ris.export.request import Request
from ris.reference.families import FAMILIES, all_choices
from ris.runtime.bundle import Bundle
from ris.runtime.categories import CategoryTable
from ris.runtime.commands.compile import build_options, compile_and_show
from ris.runtime.commands.console import (
    RisCommand,
    StepProgress,
    print_json,
    require_writable,
)
from ris.runtime.commands.downloading import DownloadProgress
from ris.runtime.commands.models import announced, pushed_data, pushed_line
from ris.runtime.commands.named_files import fetch_given, would_download
from ris.runtime.commands.weight_files import (
    choice_options,
    family_option,
    weight_file_options,
)
from ris.runtime.hub.given import given_names
from ris.runtime.hub.models import Entry, PublishedFile, as_data
from ris.runtime.hub.push import Pushed, push, require_login

if TYPE_CHECKING:
    from ris.calibration.numerics import Ranges
    from ris.export.bundle_writer import ExportResult
    from ris.export.rounded_file import RoundedFile
    from ris.export.sources import ModelSource

PRESET_NAMES = tuple(name for family in FAMILIES.values() for name in family.presets)
"""The presets of all families."""

_NEEDED = ("torch", "onnx", "segment_anything", "open_clip", "transformers", "onnxruntime")


@click.command(cls=RisCommand)
@click.option(
    "--model",
    metavar="NAME",
    help="A published model: its files are fetched where they are not here yet. "
    "`ris-models list` has the names.",
)
@click.option(
    "--accept-licence",
    metavar="WORD",
    help="With --model: terms that you accept, where the model asks for it.",
)
@weight_file_options()
@family_option()
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("ris-bundle"),
    show_default=True,
    help="The bundle to write, a folder.",
)
@click.option(
    "--precision",
    type=click.Choice(["fp32", "bf16", "fp16"]),
    default="fp32",
    show_default=True,
    help="What the graphs compute in. FP16 keeps inputs, outputs and a few layers in FP32; "
    "bf16 is for CPUs: the weights of the graphs for which bfloat16 is precise enough are "
    "bfloat16, and OpenVINO computes in it.",
)
@click.option(
    "--fp32",
    multiple=True,
    metavar="GRAPH",
    help="A graph that stays FP32 in a narrower bundle, where its masks would not be accepted "
    "otherwise; may be repeated.",
)
@click.option(
    "--weight-format",
    multiple=True,
    metavar="[GRAPH=]FORMAT",
    help="Store matrices as int8 or int4, in groups of 128; products stay in --precision. For the"
    " graphs that the family names, or for GRAPH; may be repeated.",
)
@click.option(
    "--weights-from",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="With --weight-format: the levels that ris-calibrate weights chose for these weights, in "
    "place of the nearest ones.",
)
@click.option(
    "--random-weights",
    type=int,
    metavar="SEED",
    help="Export an untrained model with made-up weights, for benchmarks; its masks mean nothing.",
)
@click.option(
    "--preset",
    type=click.Choice(PRESET_NAMES),
    help="The architecture. Default: what the checkpoint says; with --random-weights "
    "vitb-vitl336, the paper's. The tiny ones have made-up weights where none are given.",
)
@click.option(
    "--variant",
    type=click.Choice(["cls", "category"]),
    help="What the sparse branch asks with: BERT's [CLS] (and a no-target head), or a COCO "
    "category. Default: what the checkpoint says; cls without one.",
)
@click.option(
    "--supplement",
    is_flag=True,
    help="The architecture as the paper's supplement words it, where the released code differs.",
)
@choice_options(all_choices())
@click.option(
    "--grid-sample",
    type=click.Choice(["native", "gather"]),
    help="How deformable attention samples: GridSample nodes, or gathers for engines whose "
    "GridSample is wrong (TensorRT), for which SAM's attention is written in one kernel's form, "
    "too. Default: what --engine needs; native without one.",
)
@click.option(
    "--resizing",
    type=click.Choice(["host", "graph"]),
    default="host",
    show_default=True,
    help="What resizes maps between two graphs, as the dense prompt: the runtime on the host, or "
    "the graph that takes them, so that on a GPU they stay there.",
)
@click.option(
    "--engine",
    type=click.Choice(ENGINE_NAMES),
    help="Compile the graphs for this engine too, when they are written (ris-compile does it "
    "later).",
)
@build_options
@click.option(
    "--vocabulary",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="A vocab.txt, tokenizer.json or, for evfsam, sentencepiece.bpe.model. Default: that of "
    "--bert, or the one beside an evfsam checkpoint; else bert-base-uncased's for full-size BERT.",
)
@click.option(
    "--ranges",
    "ranges_file",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="What ris-calibrate ranges measured on an FP32 bundle of this model: FP16 spares what "
    "comes near its limit.",
)
@click.option(
    "--force",
    is_flag=True,
    help="Replace the bundle if it exists.",
)
@click.option(
    "--push",
    metavar="ADDRESS",
    help="Publish the bundle when it is written, at hf://ORGANISATION/NAME (`ris-models push` "
    "does it later).",
)
@click.option(
    "--licence",
    metavar="WORD",
    help="With --push: the licence that the weights allow the bundle to be published under.",
)
@click.option(
    "--private",
    is_flag=True,
    help="With --push: make a new repository private.",
)
@click.option(
    "--dry-run",
    is_flag=True,
    help="Say what was found, what is missing, and the plan; write nothing.",
)
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print what was written (or the dry run) as JSON.",
)
def main(
    dry_run: bool,
    as_json: bool,
    files: dict[str, Path | None],
    **given: Any,
) -> None:
    """Exports a model into a bundle of ONNX graphs.

    Each graph is checked against PyTorch as it is written.

    --model takes a published model by its name, and fetches it. --checkpoint takes a trained model;
    variant and sizes are read off it. A component file replaces what training leaves alone (SAM's
    image encoder, CLIP) and fills in what the checkpoint lacks of the rest (SAM's mask decoder,
    BERT). Without weights it exports the built-in demo, a small model trained on drawn scenes.

    \b
    Examples:
      ris-export
      ris-export --precision fp16 --out demo-fp16
      ris-export --precision bf16 --out demo-bf16
      ris-export --precision fp16 --engine tensorrt-rtx --out demo-rtx
      ris-export --model rela-swin-base --checkpoint gres_swin_base.pth
      ris-export --checkpoint model_final.pth --dry-run
      ris-export --checkpoint model_final.pth --precision fp16
      ris-export --model evf-sam-multitask --weight-format int4
      ris-export --checkpoint trained.pth --sam-checkpoint sam_vit_b_01ec64.pth \\
          --clip-checkpoint ViT-L-14-336px.pt
      ris-export --random-weights 0 --out full-size
    """
    _require_packages()
    request = Request(files={k: v for k, v in files.items() if v is not None}, **given)
    request.check()
    ranges, rounded = request.read_ranges(), request.read_rounded()
    row = request.engine_row()
    if request.is_demo:
        click.echo(
            "No weights were given: exporting the built-in demo, trained on drawn scenes.", err=True
        )
    if not dry_run:
        _require_way_out(request)
    with_parts = _fetch_parts(request, dry_run, as_json)
    if with_parts is None:
        return
    request = with_parts
    if request.entry is not None:
        found = _fetch(request, request.entry, dry_run, as_json)
        if found is None:
            return
        request = found
    if dry_run:
        _dry_run(request, as_json)
        return

    start = time.perf_counter()
    source, result = _export(request, row, ranges, rounded)
    if not as_json:
        from ris.export.summary import print_summary

        print_summary(source, result, time.perf_counter() - start)
    engines = _compile(request, row, result, quiet=as_json)
    pushed = _push(request, result)

    if as_json:
        _print_json(result, source, engines, pushed)
    else:
        _print_next(result, row)
        if pushed is not None:
            click.echo(pushed_line(pushed))
    for warning in source.warnings:
        click.echo(warning, err=True)


def _require_packages() -> None:
    """Raises RisError where a package that only exports need is not installed."""
    for package in _NEEDED:
        if importlib.util.find_spec(package) is None:
            raise RisError(f"ris-export needs {package}: {pip_install('cpu', 'export')}")


def _require_way_out(request: Request) -> None:
    """Raises RisError where the bundle could not be written or published in the end.

    It is asked before gigabytes are downloaded, or an export takes minutes.
    """
    from ris.runtime.bundle_folder import behind_links, check_target

    check_target(request.out, request.force)
    require_writable(behind_links(request.out).parent, folder=True)
    if request.target is not None:
        require_login(request.target)


def _fetch_parts(request: Request, dry_run: bool, as_json: bool) -> Request | None:
    """The request with the component files that were given by name; a dry run as in `_fetch`."""
    names = given_names(request.files)
    if dry_run and (files := names.missing()):
        if as_json:
            print_json({"download": _as_downloads(files)}, indent=2)
            return None
        for entry in names.entries:
            click.echo("\n".join(announced(entry)))
        _say_download(files)
        return None
    return replace(request, files={**request.files, **fetch_given(names)})


def with_files(request: Request) -> Request:
    """The request with the files that it names, fetched where they are not here yet."""
    with_parts = _fetch_parts(request, dry_run=False, as_json=False)
    assert with_parts is not None, "only a dry run ends here"
    if with_parts.entry is None:
        return with_parts
    found = _fetch(with_parts, with_parts.entry, dry_run=False, as_json=False)
    assert found is not None, "only a dry run ends here"
    return found


def _say_download(files: Sequence[PublishedFile]) -> None:
    for file in files:
        click.echo(f"would download {would_download(file)}; what is in it is not known before that")


def _as_downloads(files: Sequence[PublishedFile]) -> list[dict[str, Any]]:
    return [{"file": file.name, "from": file.place, "bytes": file.bytes} for file in files]


def _fetch(request: Request, entry: Entry, dry_run: bool, as_json: bool) -> Request | None:
    """The request with the files of the published model that it names.

    Says licence and source before anything is downloaded. A dry run downloads nothing: it says what
    would be, and there is None.
    """
    from ris.export import named

    if dry_run and (files := named.missing(entry, request.files)):
        if as_json:
            print_json({"model": as_data(entry), "download": _as_downloads(files)}, indent=2)
            return None
        click.echo("\n".join(announced(entry)))
        _say_download(files)
        return None
    click.echo("\n".join(announced(entry)), err=True)
    with DownloadProgress() as progress:
        return request.with_files(named.get(entry, request.files, progress))


def _push(request: Request, result: ExportResult) -> Pushed | None:
    """Publishes the written bundle, where that was asked for."""
    if request.target is None:
        return None
    bundle = Bundle(request.out, result.manifest)
    try:
        return push(bundle, request.target, request.licence, private=request.private)
    except RisError as error:
        kept = f"{request.out} is written; ris-models push {request.out} publishes it later"
        raise type(error)(f"{error}. {kept}") from None


def _export(
    request: Request,
    row: EngineSpec | None,
    ranges: Ranges | None,
    rounded: RoundedFile | None,
) -> tuple[ModelSource, ExportResult]:
    """Writes the bundle, with progress.

    The libraries are imported here, as a step that is shown: they take seconds.
    """
    reads_weights = bool(request.files) or request.is_demo
    with StepProgress("Export") as progress:
        progress("libraries")
        from ris.export.bundle_writer import ExportOptions, chosen_graphs, export_bundle, steps
        from ris.runtime.bundle_folder import check_target

        check_target(request.out, request.force)
        source = request.find()
        progress.expect(1 + reads_weights + steps(source.family, source.config))
        if request.files:
            from ris.export.plan import found_lines

            click.echo("\n".join(found_lines(source)), err=True)
        options = ExportOptions(
            precision=request.precision,
            fp32=request.fp32,
            sampling=request.sampling(row),
            resizing=request.resizing,
            vocabulary=request.vocabulary or source.vocabulary,
            overwrite=request.force,
            ranges=ranges,
            weights=request.weights,
            rounded=rounded,
        )
        chosen_graphs(source.family, source.config, options)  # raises before files are hashed
        if reads_weights:
            progress("checkpoint")
        result = export_bundle(
            source.make,
            source.config,
            request.out,
            family=source.family,
            source=source.describe(),
            options=options,
            report=progress,
        )
    return source, result


def _compile(
    request: Request, row: EngineSpec | None, result: ExportResult, quiet: bool
) -> dict[str, Any]:
    """Compiles the written graphs for the engine, if there is one.

    Returns the report of `compile_and_show` by engine; empty without one.
    """
    if row is None:
        return {}
    assert request.compiling is not None, "an engine comes with it"
    written = Bundle(request.out, result.manifest)
    compiler = create(row.name, request.compiling.engine_options(row, written))
    return {row.name: compile_and_show(written, row, compiler, quiet=quiet)}


def _dry_run(request: Request, as_json: bool) -> None:
    """Prints what an export would do. Ends with 2 where it would not work."""
    from ris.export import plan as plans
    from ris.runtime.bundle_folder import check_target

    try:
        source = request.find()
    except RisError as error:
        if not as_json:
            raise
        print_json({"plan": {"works": False, "problems": [str(error)]}}, indent=2)
        raise click.exceptions.Exit(error.exit_code) from None

    plan = plans.make_plan(
        source,
        request.precision,
        request.out,
        vocabulary=request.vocabulary or source.vocabulary,
        check_target=lambda: check_target(request.out, request.force),
        fp32=request.fp32,
        weights=request.weights,
    )
    if as_json:
        print_json(plans.report(source, plan), indent=2)
    else:
        click.echo("\n".join(plans.lines(source, plan)))
    if plan.problems:
        raise click.exceptions.Exit(2)


def _print_json(
    result: ExportResult,
    source: ModelSource,
    engines: dict[str, Any],
    pushed: Pushed | None,
) -> None:
    """The same for programs; engines: what `_compile` returned."""
    data = {
        "bundle": str(result.path),
        "parity": json.loads(result.manifest.to_json())["parity"],
        "warnings": source.warnings,
    }
    weights = {
        stage: asdict(entry.weights)
        for stage, entry in result.manifest.graphs.items()
        if entry.weights is not None
    }
    if weights:
        data["weights"] = weights
    if engines:
        data["engines"] = engines
    if pushed is not None:
        data["pushed"] = pushed_data(pushed)
    print_json(data, indent=2)


def _print_next(result: ExportResult, row: EngineSpec | None) -> None:
    """The commands to go on with; an engine that cannot run here is not in them."""
    out = result.path
    flag = "" if str(out) == "ris-bundle" else f" --bundle {out}"
    category = ""
    if (table := result.manifest.categories) is not None:
        name = CategoryTable.read(out / table.names).names[0]
        category = f" --category {shlex.quote(name)}"
    engine = f" --engine {row.name}" if row is not None and row.name != "onnxruntime" else ""
    if row is not None and (reason := row.unusable()):
        click.echo(f"{row.name} cannot run here: {reason}. The next commands use what can.")
        engine = ""
    click.echo("Next:")
    click.echo(f'  ris-infer image.jpg "left man"{category}{flag}{engine}')
    click.echo(f"  ris-parity {out}{engine}")
