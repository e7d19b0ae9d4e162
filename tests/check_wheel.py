"""Installs a wheel alone in an empty environment and uses it as its users would.

    python tests/check_wheel.py dist/ris_runtime-0.2.0-py3-none-any.whl
    python tests/check_wheel.py --oldest dist/ris_runtime-0.2.0-py3-none-any.whl

The environment is made with the Python that runs this file. --oldest installs the lowest versions
that pyproject.toml allows, --types runs pyright over it too. Prints a line for each check and ends
with 1 at the first that fails. Needs nothing but Python and an index to install from.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import tomllib
import venv
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))["project"]
COMMANDS = sorted(PROJECT["scripts"])
HEAVY = ("torch", "onnx", "transformers", "openvino", "ray")

MASK = """
import sys, time
begin = time.perf_counter()
import ris, ris.runtime
print(f"import ris.runtime: {time.perf_counter() - begin:.2f} s, version {ris.__version__}")
with ris.runtime.load(ris.runtime.BUILT_IN) as model:
    left, right = model.encode_image(sys.argv[1]).segment_many(["left man", "right man"])
assert left.mask.any() and right.mask.any() and not (left.mask & right.mask).any()
columns = [result.mask.nonzero()[1].mean() for result in (left, right)]
assert columns[0] < columns[1], columns
"""

TYPES = """
from ris.engines import EngineOptions, create
from ris.runtime import Segmentation, load

with load("ris-bundle", engine="onnxruntime", threads=2) as model:
    result = model.encode_image("photo.jpg").segment("left man")
reveal_type(result)
reveal_type(result.score)
reveal_type(create("auto", EngineOptions(device="cpu")))
load("ris-bundle", egnine="onnxruntime")
"""


class Environment:
    """A new environment with the wheel in it, and an empty folder to work in."""

    def __init__(self, folder: Path) -> None:
        self.here = folder / "work"
        self.here.mkdir()
        venv.create(folder / "venv", with_pip=True)
        self.bin = folder / "venv" / ("Scripts" if os.name == "nt" else "bin")

    def run(self, *command: object, expect: int = 0) -> str:
        """A program of the environment; its output. Ends this one where it ends otherwise."""
        program, *arguments = map(str, command)
        # nothing of the checkout may be found by accident
        outside = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "RIS_"))}
        done = subprocess.run(
            [self.bin / program, *arguments],
            cwd=self.here,
            env=outside,
            capture_output=True,
            text=True,
        )
        if done.returncode != expect:
            print(done.stdout[-4000:], done.stderr[-4000:], sep="\n")
            sys.exit(f"{' '.join(map(str, command))} ended with {done.returncode}")
        return done.stdout

    def pip(self, *arguments: object) -> None:
        """`pip install`, with what it says where it fails."""
        self.run("python", "-m", "pip", "install", "-q", *arguments)


def lowest_versions() -> str:
    """The lower bounds of the thin install as a constraints file."""
    wanted = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["cpu"]]
    return "".join(re.sub(r"\s*>=\s*([\d.]+).*", r"==\1\n", one) for one in wanted)


def check(environment: Environment) -> None:
    """The commands and the Python API over the built-in bundle. Ends this program at a failure."""
    park = REPO / "examples" / "park.jpg"
    for name in COMMANDS:
        said = environment.run(name, "--version")
        assert said.startswith("ris-runtime "), f"{name} --version says {said!r}"
    print(f"{len(COMMANDS)} commands start")

    installed = environment.run("python", "-m", "pip", "list", "--format=freeze").lower()
    heavy = [name for name in HEAVY if f"\n{name}==" in f"\n{installed}"]
    assert not heavy, f"the thin install brought {heavy}"
    print(environment.run("python", "-c", MASK, park).strip())

    said = environment.run("ris-infer", park, "left man", "the tree", "--json").splitlines()
    assert [json.loads(line)["expression"] for line in said] == ["left man", "the tree"], said
    assert list(environment.here.glob("ris-output/*.png")), "ris-infer wrote no picture"
    environment.run("ris-infer", "nosuch.jpg", "left man", expect=2)
    print("ris-infer answers, and refuses a file that is not there")

    environment.run("ris-parity", "--engine", "onnxruntime", builtin(environment))
    environment.run("ris-doctor", "--check", builtin(environment))
    print("ris-parity and ris-doctor find the built-in bundle whole and right")


def builtin(environment: Environment) -> str:
    """The path of the bundle in the wheel."""
    code = "import ris.runtime; print(ris.runtime.BUILT_IN)"
    return environment.run("python", "-c", code).strip()


def check_types(environment: Environment) -> None:
    """Pyright finds the package's types and holds its users to them."""
    environment.pip("pyright[nodejs]")
    (environment.here / "user.py").write_text(TYPES)
    done = subprocess.run(
        [environment.bin / "pyright", "--outputjson", "user.py"],
        cwd=environment.here,
        env=os.environ | {"PATH": f"{environment.bin}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
    )
    said = [
        d["severity"] + ": " + d["message"] for d in json.loads(done.stdout)["generalDiagnostics"]
    ]
    revealed = [line for line in said if line.startswith("information")]
    assert [re.search(r'is "(\w+)"', line)[1] for line in revealed] == [
        "Segmentation",
        "float",
        "Engine",
    ], said  # type: ignore[index]
    errors = [line for line in said if line.startswith("error")]
    assert len(errors) == 1, said
    assert "egnine" in errors[0], said
    print("pyright finds the types, and a misspelt option")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--oldest", action="store_true")
    parser.add_argument(
        "--types", action="store_true", help="run pyright over the installed wheel too"
    )
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ris-wheel-") as folder:
        environment = Environment(Path(folder))
        wheel = f"{given.wheel.resolve()}[cpu]"
        if given.oldest:
            constraints = Path(folder) / "lowest.txt"
            constraints.write_text(lowest_versions())
            environment.pip("-c", constraints, wheel)
        else:
            environment.pip(wheel)
        version = ".".join(map(str, sys.version_info[:3]))
        which = ", the oldest versions" if given.oldest else ""
        print(f"{given.wheel.name} on Python {version}{which}")
        check(environment)
        if given.types:
            check_types(environment)


if __name__ == "__main__":
    main()
