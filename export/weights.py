"""`--weight-format`: which graphs store their matrices in 8 or 4 bits, and what that costs them."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence

from ris.calibration.weights.data import Report
from ris.calibration.weights.graph import Matrix, Quantised
from ris.calibration.weights.groups import FORMATS, WeightFormat
from ris.engines.errors import RisError
from ris.engines.text import quoted
from ris.export.families.design import StageDesign
from ris.runtime.manifest_weights import Rounding, StoredWeights
from ris.runtime.parity import StageParity
from ris.runtime.tolerance import Tolerance

ANY = Tolerance(
    stage=math.inf,
    no_target_logits=None,
    no_target_margin=0.5,
    mask_logits=math.inf,
    mask_iou=-1.0,
    flipped=1.0,
)
"""What is accepted of graphs whose weights were rounded: anything finite.

What it costs depends on the weights. It is measured, said and in the manifest, and a run may not
cost more.
"""

_NUMBERED = re.compile(r".*?\.\d+(?=\.|$)")  # "layers.3" of "layers.3.mlp.up_proj"
_WORTH_SAYING = 1_000_000_000  # bytes of a data file


def parse_formats(words: Sequence[str]) -> dict[str, WeightFormat]:
    """The formats by graph, of words such as "int4" and "GRAPH=int8".

    A word without a graph is for those that the family names, under the key "".

    Raises:
        RisError: For a format that there is not, and for a graph that is named twice.
    """
    found: dict[str, WeightFormat] = {}
    for word in words:
        stage, _, name = word.rpartition("=")
        format = next((one for one in FORMATS if one == name), None)
        if format is None:
            raise RisError(
                f"--weight-format {quoted(word)}: expected {' or '.join(FORMATS)}, or GRAPH= before"
                " it"
            )
        if stage in found:
            twice = f"{stage} twice" if stage else "two formats for all graphs"
            raise RisError(f"--weight-format names {twice}; give it once")
        found[stage] = format
    return found


def formats_of(
    stages: Sequence[StageDesign], asked: Mapping[str, WeightFormat]
) -> dict[str, WeightFormat]:
    """What the matrices of each graph are stored in, where it is not their own precision.

    Args:
        stages: The graphs.
        asked: As of `parse_formats`.

    Raises:
        RisError: For a graph that there is not, and where the family names none itself.
    """
    names = [stage.name for stage in stages]
    if unknown := sorted(asked.keys() - {"", *names}):
        raise RisError(
            f"there is no graph {unknown[0]!r} whose weights could be narrower; there are"
            f" {', '.join(names)}"
        )
    found = {name: format for name, format in asked.items() if name}
    if "" in asked:
        own = [stage.name for stage in stages if stage.narrow_weights]
        if not own:
            format = asked[""]
            raise RisError(
                "the family does not say which graphs narrow weights are for; name them, as in"
                f" --weight-format {names[0]}={format}: {', '.join(names)}"
            )
        found = dict.fromkeys(own, asked[""]) | found
    return found


def stored(
    quantised: Quantised,
    format: WeightFormat,
    scopes: Mapping[str, Sequence[str]],
    rounding: Rounding = "nearest",
) -> StoredWeights | None:
    """What the manifest says of a graph's matrices, once they are written; None without any.

    Args:
        quantised: The matrices, and what rounding changed in each.
        format: What they are stored in.
        scopes: For every node the paths of the modules it came from, outermost first, its own name
            last.
        rounding: How levels were chosen.
    """
    if not quantised.matrices:
        return None
    return StoredWeights(
        format=format,
        group=max(one.group for one in quantised.matrices),
        matrices=len(quantised.matrices),
        elements=sum(one.rows * one.columns for one in quantised.matrices),
        rounding=rounding,
        error=quantised.error,
        layers=_layers(quantised, scopes),
    )


def _layers(quantised: Quantised, scopes: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """What rounding changed in each layer: the blocks that are numbered, and what is in none."""
    found: dict[str, list[Matrix]] = {}
    for one in quantised.matrices:
        *modules, own = scopes.get(one.reader) or [one.reader]
        path = modules[-1] if modules and modules[-1] else own
        layer = _NUMBERED.match(path)
        found.setdefault(layer[0] if layer else path, []).append(one)
    return {layer: quantised.error_of(matrices) for layer, matrices in found.items()}


def worst_layers(weights: StoredWeights, count: int = 3) -> list[tuple[str, float]]:
    """The layers in which rounding changed most, and how much, the worst first."""
    return sorted(weights.layers.items(), key=lambda pair: -pair[1])[:count]


def require_matrices(stage: str, quantised: Quantised) -> None:
    """Raises RisError where a graph has no matrix that could be stored in fewer bits."""
    if not quantised.matrices:
        raise RisError(
            f"{stage} has no matrix whose sums are over a multiple of 64 weights, so there is"
            " nothing to store in fewer bits; leave --weight-format out for it"
        )


def require_finite(rows: Mapping[str, StageParity], what: str) -> None:
    """Raises RisError where rounded weights give values that are not finite."""
    if odd := [name for name, row in rows.items() if not math.isfinite(row.relative)]:
        raise RisError(f"{what} gives values that are not finite with such weights: {odd[0]}")


def every_tenth(say: Callable[[str], None], what: str) -> Report:
    """Says how much of a large data file is written, ten times in all.

    Args:
        say: Called with a line.
        what: What is written, in words.
    """
    said = 0

    def report(done: int, whole: int) -> None:
        nonlocal said
        tenths = 10 * done // whole if whole else 10
        if tenths > said and whole >= _WORTH_SAYING:
            said = tenths
            say(f"{what}: {done / 1e9:.1f} of {whole / 1e9:.1f} GB")

    return report
