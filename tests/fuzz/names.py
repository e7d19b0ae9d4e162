"""Tables of models: mutated ones through their reader, and what is shown of them."""

from __future__ import annotations

import functools
import json
import random
from pathlib import Path
from typing import Any

from fuzz.json_tree import mutated_json
from fuzz.kinds import Input, Kind, require
from ris.engines.errors import HubError
from ris.runtime.commands.models import announced
from ris.runtime.hub.models import TABLE, as_data, read_table

_FILE = "models.json"


@functools.cache
def _table() -> Any:
    return json.loads(TABLE.read_text(encoding="utf-8"))


def _make(rng: random.Random, control: bool) -> Input:
    if control:
        return Input({_FILE: TABLE.read_bytes()}, expected=len(_table()["entries"]))
    return Input({_FILE: mutated_json(_table(), rng)})


def _read(folder: Path, expected: Any) -> list[str]:
    table = read_table(folder / _FILE)
    require(expected is None or len(table.entries) == expected, f"{len(table.entries)} entries")
    for entry in table.entries:
        require(table.named(entry.name) is entry, f"{entry.name} is another")
        require(bool(announced(entry)), f"nothing is said of {entry.name}")
        json.dumps(as_data(entry))
        for file in entry.files:
            names = [part for part in file.name.split("/") if part in ("", ".", "..")]
            require(not names, f"{file.name} leads elsewhere")
            require((file.source is None) == (file.page is not None), f"{file.name} is nowhere")
    try:
        table.named("nothing like it")
    except HubError:
        return []
    raise AssertionError("an unknown name was found")


KINDS = {"names-table": Kind(_make, _read)}
