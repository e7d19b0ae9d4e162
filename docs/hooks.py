"""What the site needs beside its pages: `mkdocs.yml` names this file under `hooks`.

The C API page is made from `cpp/include/ris.h`. mkdocstrings finds the package through links, as
its rooms stand side by side in the repository. Help texts become Markdown for mkdocs-click.
"""

from __future__ import annotations

import importlib
import inspect
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parent.parent
HEADER = REPO / "cpp" / "include" / "ris.h"
C_API_PAGE, C_API_MARK = "reference/c-api.md", "<!-- made from cpp/include/ris.h -->"


# What MkDocs calls


def on_startup(**_: Any) -> None:
    """Before anything is read."""
    link_packages(REPO / "build" / "docs-packages")
    for command in commands():
        format_help(command)


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Fills in the C API."""
    if page.file.src_uri != C_API_PAGE:
        return markdown
    if C_API_MARK not in markdown:
        raise ValueError(f"{C_API_PAGE} lacks the line {C_API_MARK}")
    return markdown.replace(C_API_MARK, c_api(HEADER.read_text(encoding="utf-8")))


def on_post_build(*, config: Any, **_: Any) -> None:
    """The site must work without a network: no page may load anything from another host."""
    loads = re.compile(r"<(?:script|img|iframe)\b[^>]*\bsrc=\"?https?:|<link\b[^>]*href=\"?https?:")
    for file in sorted(Path(config["site_dir"]).rglob("*.html")):
        if found := loads.search(file.read_text(encoding="utf-8")):
            raise ValueError(f"{file} loads from another host: {found.group()}")


# The Python package and the commands


def link_packages(folder: Path) -> None:
    """Links to the rooms under their import names, `ris.runtime` and so on."""
    settings = tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))
    root = folder / "ris"
    root.mkdir(parents=True, exist_ok=True)
    for name, room in settings["tool"]["setuptools"]["package-dir"].items():
        if name == "ris":
            _link(root / "__init__.py", REPO / room / "__init__.py")
        else:
            _link(root / name.removeprefix("ris."), REPO / room)


def _link(link: Path, target: Path) -> None:
    if not link.is_symlink():
        link.symlink_to(target)


def commands() -> Iterator[Any]:
    """Every click command of the project, groups and their members."""
    settings = tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))
    for place in settings["project"]["scripts"].values():
        module, _, name = place.partition(":")
        command = getattr(importlib.import_module(module), name)
        yield command
        yield from getattr(command, "commands", {}).values()


def format_help(command: Any) -> None:
    """Makes a code block of the examples in a help text, which click leaves as they are by \\b."""
    if command.help:
        command.help = re.sub(
            r"\x08\nExamples:\n(.*?)(?=\n\n|\Z)",
            lambda found: "**Examples:**\n\n```sh\n" + _dedent(found.group(1)) + "\n```",
            inspect.cleandoc(command.help),
            flags=re.DOTALL,
        )


def _dedent(text: str) -> str:
    lines = text.rstrip().splitlines()
    margin = min(len(line) - len(line.lstrip()) for line in lines)
    return "\n".join(line[margin:] for line in lines)


# The C API

COMMENT = r"/\*(?P<comment>(?:(?!\*/).)*)\*/\s*"
FUNCTION = re.compile(
    rf"(?:{COMMENT})?RIS_API (?P<declaration>[^;]*?\b(?P<name>ris_\w+)\([^;]*\));", re.DOTALL
)
STRUCT = re.compile(
    rf"(?:{COMMENT})?typedef struct (?P<name>\w+) \{{(?P<body>.*?)\}} (?P=name);", re.DOTALL
)
ENUM = re.compile(r"typedef enum (?P<name>\w+) \{(?P<body>.*?)\} (?P=name);", re.DOTALL)
HANDLE = re.compile(r"typedef struct (?P<name>\w+) (?P=name);\s*/\*(?P<comment>.*?)\*/", re.DOTALL)
MEMBER = re.compile(
    r"(?P<name>RIS_\w+) = (?P<value>\d+),?(?:[ \t]*/\*(?P<comment>.*?)\*/)?", re.DOTALL
)
FIELD = re.compile(
    r"(?:/\*(?P<before>(?:(?!\*/).)*)\*/\s*)?"
    r"(?P<type>(?:const )?\w+(?: \*const)?) (?P<names>\*?\w+(?:, \*?\w+)*);"
    r"(?:[ \t]*/\*(?P<behind>(?:(?!\*/).)*)\*/)?",
    re.DOTALL,
)


def c_api(header: str) -> str:
    """The header as Markdown. Raises ValueError where a declaration is not understood."""
    top, _, declarations = header.partition("#ifndef RIS_H")
    parts = [
        _conventions(top),
        "## Handles\n\n| type | what it is |\n|---|---|",
        *(f"| `{m['name']}` | {_prose(m['comment'])} |" for m in HANDLE.finditer(declarations)),
        "",
    ]
    for enum in ENUM.finditer(declarations):
        parts.append(f"## Status\n\n`{enum['name']}`:\n\n| name | value | meaning |\n|---|---|---|")
        parts += (
            f"| `{m['name']}` | {m['value']} | {_prose(m['comment'] or 'done')} |"
            for m in MEMBER.finditer(enum["body"])
        )
        parts.append("")

    parts.append("## Structures\n")
    for struct in STRUCT.finditer(declarations):
        parts.append(f"### `{struct['name']}`\n\n{_prose(struct['comment'] or '')}\n")
        parts.append("| field | type | meaning |\n|---|---|---|")
        parts += _fields(struct["body"])
        parts.append("")

    parts.append("## Functions\n")
    functions = list(FUNCTION.finditer(declarations))
    if len(functions) != len(re.findall(r"^RIS_API ", declarations, re.MULTILINE)):
        raise ValueError(f"{HEADER.name} declares a function that this page does not understand")
    for function in functions:
        declaration = re.sub(r"\s+", " ", function["declaration"])
        parts.append(f"### `{function['name']}`\n\n```c\n{_wrap(declaration)};\n```\n")
        if function["comment"]:
            parts.append(_prose(function["comment"]) + "\n")
    return "\n".join(parts)


def _conventions(top: str) -> str:
    """The comment at the top: what libris is, an example, and rules under a word each."""
    lines = [re.sub(r"^ ?\*/?|^/\*", "", line) for line in top.strip().splitlines()]
    shown = []
    for block in re.split(r"\n\s*\n", "\n".join(line.rstrip() for line in lines)):
        if block.startswith("     "):
            shown.append("```c\n" + _dedent(block) + "\n```")
        elif rule := re.match(r" (\w+) {2,}(?=\S)", block):
            shown.append(f"**{rule[1]}.** {_prose(block[rule.end() :])}")
        elif block.strip():
            shown.append(_prose(block))
    if len(shown) < 2:
        raise ValueError(f"{HEADER.name} does not begin with its conventions")
    return "\n\n".join(shown) + "\n"


def _fields(body: str) -> Iterator[str]:
    for field in FIELD.finditer(body):
        meaning = _prose(field["behind"] or field["before"] or "")
        for name in field["names"].split(", "):
            kind = field["type"] + (" *" if name.startswith("*") else "")
            yield f"| `{name.lstrip('*')}` | `{kind}` | {meaning} |"


def _prose(comment: str) -> str:
    """A comment as one paragraph, with the header's names in code font."""
    text = " ".join(re.sub(r"^\s*\* ?", "", line).strip() for line in comment.splitlines()).strip()
    names = r"`[^`]*`|\bris_\w+(?:\(\))?|\bRIS_\w+|\bsizeof\(\w+\)|\bNULL\b|(?<!\w)\*\*(?!\w)"
    return re.sub(names, lambda found: f"`{found[0].strip('`')}`", text)


def _wrap(declaration: str) -> str:
    """One argument a line where a declaration is long."""
    if len(declaration) <= 80:
        return declaration
    head, _, arguments = declaration.partition("(")
    return head + "(\n    " + ",\n    ".join(arguments.rstrip(")").split(", ")) + ")"
