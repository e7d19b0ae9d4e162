"""How a page of the code reads, as CONTRIBUTING.md has it: fields, arguments, lengths, columns."""

from __future__ import annotations

import ast
import tomllib

from conftest import REPO

ROOMS = tomllib.loads((REPO / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]
FOLDERS = [*ROOMS["package-dir"].values(), "cpp", "docs", "examples"]
PAGES = [path for folder in FOLDERS for path in sorted((REPO / folder).rglob("*.py"))]
PYTHON = [*PAGES, *sorted((REPO / "tests").rglob("*.py"))]
MOST_PARAMETERS = 8
MOST_LINES = 500
COLUMNS = 100
TABLES: set[str] = set()
"""Files that hold tables of numbers, which alone may say `fmt: skip`."""


def name(path):
    return str(path.relative_to(REPO))


def classes_and_functions(tree):
    return (node for node in ast.walk(tree) if isinstance(node, ast.ClassDef | ast.FunctionDef))


def is_record(node):
    """A dataclass, a NamedTuple or a TypedDict."""
    words = [ast.unparse(one) for one in (*node.decorator_list, *node.bases)]
    return any(word.startswith(("dataclass", "NamedTuple", "TypedDict")) for word in words)


def undocumented_fields(node):
    for field, after in zip(node.body, [*node.body[1:], None], strict=True):
        if not isinstance(field, ast.AnnAssign):
            continue
        text = after.value if isinstance(after, ast.Expr) else None
        if not (isinstance(text, ast.Constant) and isinstance(text.value, str)):
            yield f"{node.name}.{ast.unparse(field.target)}"


def parameters(node):
    given = node.args
    names = [one.arg for one in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    return [name for name in names if name not in ("self", "cls")]


def is_click(node):
    """What click calls gets an argument for each option; its docstring is the help text."""
    return any("command" in ast.unparse(one) for one in node.decorator_list)


def complaints(path):
    for node in classes_and_functions(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ClassDef):
            if is_record(node):
                yield from (f"{name} has no text under it" for name in undocumented_fields(node))
        elif not is_click(node):
            names, text = parameters(node), ast.get_docstring(node) or ""
            if len(names) > MOST_PARAMETERS:
                yield f"{node.name} takes {len(names)} parameters"
            if len(names) > 3 and not node.name.startswith("_") and "Args:" not in text:
                yield f"{node.name} has {len(names)} parameters and no Args:"


def test_fields_and_arguments_are_documented():
    found = {name(path): list(complaints(path)) for path in PAGES}
    assert not {file: said for file, said in found.items() if said}


def test_lines():
    assert len(PYTHON) > 250
    long, skips, lengths = [], [], []
    for path in PYTHON:
        lines = path.read_text(encoding="utf-8").splitlines()
        long += [f"{name(path)}:{i}" for i, line in enumerate(lines, 1) if len(line) > COLUMNS]
        skips += [
            name(path) for line in lines if line.rstrip().endswith(("# fmt: skip", "# fmt: off"))
        ]
        if path in PAGES and len(lines) > MOST_LINES:
            lengths.append(name(path))
    assert not long
    assert not set(skips) - TABLES
    assert not lengths


def test_the_readme_is_a_page():
    assert len((REPO / "README.md").read_text(encoding="utf-8").splitlines()) <= 120
