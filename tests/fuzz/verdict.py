"""What a door made of an input, and whether that is an answer, a sentence or a finding."""

from __future__ import annotations

import re
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fuzz.kinds import Kind, WrongAnswerError
from ris.engines.errors import RisError

LONGEST = 1000
"""Characters that a sentence has at most."""

OUT_OF_MEMORY = "out of memory"
"""Asked again without a limit of addresses: what was refused may never be used."""

ROOMS = ("calibration", "data", "engines", "evaluation", "export", "reference", "runtime")
ROOMS += ("serving", "training")
ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Verdict:
    """The outcome of one input."""

    kind: str
    """Its kind."""

    number: int
    """Its number."""

    outcome: str
    """"answer", "sentence" or "finding"."""

    what: str = ""
    """For a finding: the exception, the signal, or what is wrong with the sentence."""

    place: str = ""
    """For a finding: the line of the product where it came from."""

    message: str = ""
    """The sentence, or the message of the exception."""

    seconds: float = 0.0
    """How long the door took."""

    memory: int = 0
    """Bytes by which the process grew at most meanwhile."""

    stderr: int = 0
    """Bytes that libraries wrote to stderr."""

    @property
    def group(self) -> tuple[str, str, str]:
        """Findings of one group are likely one fault."""
        return self.kind, self.what, self.place

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def judge(
    kind: Kind, name: str, number: int, folder: Path, expected: Any, *, loose: bool = False
) -> Verdict:
    """Sends an input through its door and says what came of it.

    Args:
        kind: The kind of input.
        name: Its name.
        number: The input's number.
        folder: The input.
        expected: What the door gives for a control; None for others.
        loose: Memory was not limited, so that running out of it is not the input's fault.
    """
    names = [folder.name, *(p.name for p in folder.rglob("*"))]
    try:
        sentences, whole = kind.door(folder, expected), None
    except RisError as error:
        sentences, whole = [str(error)], error
    except WrongAnswerError as error:
        return Verdict(name, number, "finding", "wrong answer", _place(error), str(error))
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of Rust is no Exception
        what = type(error).__name__
        return Verdict(name, number, "finding", what, _place(error), str(error)[:2000])

    message = "\n".join(sentences)[:4000]
    if expected is not None and sentences:
        return Verdict(name, number, "finding", "control refused", _place(whole), message)
    if whole is not None and not loose and _ran_out_of_memory(whole):
        return Verdict(name, number, "finding", OUT_OF_MEMORY, _place(whole), message)
    for sentence in sentences:
        if wrong := complaint(sentence, names):
            return Verdict(name, number, "finding", wrong, _place(whole), message)
    return Verdict(name, number, "sentence" if sentences else "answer", message=message)


def complaint(sentence: str, names: list[str]) -> str:
    """What is wrong with a sentence; empty where nothing is. `names`: it says one of these."""
    if not sentence.strip():
        return "empty sentence"
    if "Traceback" in sentence:
        return "traceback"
    if len(sentence.splitlines()) != 1:
        return "several lines"
    if len(sentence) >= LONGEST:
        return f"longer than {LONGEST} characters"
    try:
        sentence.encode("utf-8")
    except UnicodeEncodeError:
        return "lone surrogate in the sentence"
    if not sentence.isprintable():
        return "control character in the sentence"
    return "" if any(name in sentence for name in names) else "names no file"


def _ran_out_of_memory(error: BaseException) -> bool:
    """Whether an error stands in the place of a MemoryError."""
    before = error.__context__
    return before is not None and (isinstance(before, MemoryError) or _ran_out_of_memory(before))


def _place(error: BaseException | None) -> str:
    """The innermost line of the product in an error's traceback; of a sentence, in its cause's."""
    if error is None:
        return ""
    while isinstance(error, RisError) and error.__context__ is not None:
        error = error.__context__
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if _room(f.filename)]
    frame = own[-1] if own else frames[-1]
    return f"{_room(frame.filename) or Path(frame.filename).name}:{frame.lineno} {frame.name}"


def place_in_dump(text: str) -> str:
    """The innermost line of the product in what faulthandler wrote."""
    frames = re.findall(r'^  File "(.+)", line (\d+) in (\S+)$', text, re.MULTILINE)
    own = (f"{_room(file)}:{line} {name}" for file, line, name in frames if _room(file))
    return next(own, "")


def _room(file: str) -> str:
    """The file relative to the repository; empty where it is not of the product."""
    path = Path(file).resolve()
    if path.is_relative_to(ROOT) and path.relative_to(ROOT).parts[0] in ROOMS:
        return str(path.relative_to(ROOT))
    return ""
