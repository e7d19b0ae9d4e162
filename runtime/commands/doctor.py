"""`ris-doctor`: what this machine can run, and whether a bundle is whole. Thin over `examine`."""

from __future__ import annotations

from typing import Any

import click

from ris.runtime.choice import Choice
from ris.runtime.commands.console import RisCommand, find_bundle, print_json, size
from ris.runtime.cost import all_known, once_an_image_words
from ris.runtime.doctor import as_dict, examine
from ris.runtime.loading import NOT_MEASURED


@click.command(cls=RisCommand)
@click.argument("bundle", required=False, type=click.Path())
@click.option(
    "--check",
    is_flag=True,
    help="Run the bundle's golden parity too, as ris-parity does.",
)
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print the report as JSON (keys: ris.runtime.doctor).",
)
@click.option(
    "-v",
    "--verbose",
    is_flag=True,
    help="Show more: FP32 islands by reason, what wrote the bundle.",
)
@click.pass_context
def main(
    context: click.Context, bundle: str | None, check: bool, as_json: bool, verbose: bool
) -> None:
    """Says what this machine can run, what not and why, and whether BUNDLE is whole.

    BUNDLE defaults to $RIS_BUNDLE, then ./ris-bundle, then the built-in demo. The text names
    neither the machine nor its user and can be pasted in an issue. Ends with exit code 2 where
    there is something to fix.

    \b
    Examples:
      ris-doctor
      ris-doctor ris-bundle --check
      ris-doctor --json
    """
    report = examine(find_bundle(bundle), check=check)
    data = as_dict(report)
    if as_json:
        print_json(data, indent=2)
    else:
        click.echo(_as_text(data, verbose))
    if not report.healthy:
        context.exit(2)


def _as_text(data: dict[str, Any], verbose: bool) -> str:
    """The report (`as_dict`) for people."""
    lines = [*_machine(data), "", *_engines(data["engines"])]
    lines.append(f"  compiled graphs: trusted by the key in {data['plan_key'] or 'no file'}")
    if data["bundle"]:
        lines += ["", *_bundle(data["bundle"], verbose)]
    said = [f"Note: {note}." for note in data["notes"]]
    said += [f"Problem: {p['what']}. Way out: {p['way_out']}." for p in data["problems"]]
    if said:
        lines += ["", *said]
    return "\n".join([*lines, "", data["verdict"]])


def _machine(data: dict[str, Any]) -> list[str]:
    """A line for each part of the machine."""
    cpu, memory, gpus = data["cpu"], data["memory"], data["gpus"]
    quota = f", a container's quota of {cpu['quota']:g}" if cpu["quota"] is not None else ""
    limit = f", a container's limit of {size(memory['limit'])}" if memory["limit"] else ""
    exporting = _pairs(data["export_packages"]) or "nothing installed (only ris-export needs it)"
    cores = f"{cpu['usable']} of {cpu['present']} cores"
    rows = {
        "versions": _pairs(data["packages"]),
        "for exporting": exporting,
        "system": ", ".join(data["system"].values()),
        "processor": f"{cpu['model']} ({cpu['architecture']}), {cores}{quota}",
        "  features": " ".join(cpu["features"]) or "none that matter here, or unknown",
        "memory": f"{_size(memory['total'])}, {_size(memory['available'])} available{limit}",
        "GPU": "; ".join(map(_gpu, gpus["found"])) or f"none found: {gpus['note']}",
    }
    return [f"{name:<14} {text}" for name, text in rows.items()]


def _engines(engines: list[dict[str, Any]]) -> list[str]:
    """A line for each engine and device."""
    lines = ["Engines"]
    for engine in engines:
        name = f"  {engine['name']}"
        if engine["missing"]:
            lines.append(f"{name}: not here: {engine['missing']}")
        for probe in engine["probes"]:
            there = f"{name} on {probe['device']}"
            if probe["problem"]:
                lines.append(f"{there}: no: {probe['problem']}")
            else:
                what = f"{', '.join(engine['precisions'])}; {', '.join(probe['providers'])}"
                lines.append(f"{there}: runs, version {probe['version']} ({what})")
    return lines


def _bundle(bundle: dict[str, Any], verbose: bool) -> list[str]:
    """The bundle's files, its model, its graphs and its parity."""
    lines = [f"Bundle {bundle['path']}"]
    if bundle["format_version"] is None:
        return [*lines, "  cannot be read"]
    hashes = "every file has the hash of the export" if bundle["whole"] else "damaged"
    lines.append(f"  files: {hashes}; format {bundle['format_version']}")
    lines.append(_model(bundle))
    for stage, graph in bundle["graphs"].items():
        lines += _graph(stage, graph, verbose)
    if chosen := bundle["compute"]:
        measured = chosen["why"] != NOT_MEASURED
        words = Choice(**chosen).words if measured else "not measured here yet"
        lines.append(f"  compute {chosen['asked']}: {words}")
    known = all_known({stage: graph["operations"] for stage, graph in bundle["graphs"].items()})
    lines.append(f"  {once_an_image_words(bundle['once_an_image'], known)}")
    for name, text in (("recorded", "parity at the export"), ("checked", "parity here, now")):
        if parity := bundle[name]:
            lines.append(f"  {text}: {_parity(parity)}")
    if verbose:
        lines.append(f"  written by: {_pairs(bundle['writer'])}")
    return lines


def _model(bundle: dict[str, Any]) -> str:
    source = bundle["source"]
    made = f"made-up weights, seed {source['seed']}"
    if source["checkpoint"]:
        made = f"checkpoint {source['checkpoint']}"
    head = "a no-target head" if bundle["no_target_head"] else "no no-target head"
    trained = "trained" if source["trained"] else "untrained"
    preset = f" {bundle['preset']}" if bundle["preset"] else ""
    query = f"{bundle['query']} query, " if bundle["query"] else ""
    return f"  model: {bundle['family']}{preset}, {query}{head}; {trained}, from {made}"


def _graph(stage: str, graph: dict[str, Any], verbose: bool) -> list[str]:
    """What a graph computes in, its weights and what runs it; `verbose`: why parts stay FP32."""
    islands = sum(graph["islands"].values())
    kept = f", {islands} FP32 islands" if islands else ""
    if any(reason.startswith("*: ") for reason in graph["islands"]):
        kept = ", all of it kept FP32"
    weights = f"{graph['parameters']:,} parameters, weights {_shares(graph['weights'])}"
    runs = graph["runs"] or graph["problem"] or "not opened"
    if graph["computes_in"]:
        runs = f"in {graph['computes_in']} on {runs}"
    lines = [f"  {stage}: {graph['asked']}{kept}; {weights}; {runs}"]
    if verbose:
        for reason, count in graph["islands"].items():
            lines.append(f"    FP32, {count} x: {reason.removeprefix('*: ')}")
    return lines


def _parity(parity: dict[str, Any]) -> str:
    parts = [f"masks IoU {parity['mask_iou']:.6f}"]
    if parity["end_to_end"] is not None:
        parts.append(f"mask logits {parity['end_to_end']:.1e} relative")
    if parity["worst_stage"]:
        parts.append(f"worst stage {parity['worst_stage']} {parity['worst']:.1e}")
    if parity["computes_in"]:
        parts.append(f"computed in {', '.join(parity['computes_in'])}")
    return ", ".join(parts)


def _shares(weights: dict[str, int]) -> str:
    """The share of the weights in each precision."""
    total = sum(weights.values())
    if not total:
        return "none"
    return ", ".join(f"{count / total:.1%} {kind}" for kind, count in weights.items())


def _pairs(values: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in values.items())


def _gpu(gpu: dict[str, Any]) -> str:
    text = f"{gpu['name']}, driver {gpu['driver']}, {gpu['memory']} MiB"
    if capability := gpu["compute_capability"]:
        text += f", compute capability {capability}"
    return text


def _size(count: int | None) -> str:
    return "unknown" if count is None else size(count)
