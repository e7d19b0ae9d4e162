"""Documents agree with each other and with the code that names them. MkDocs is not needed here:
`make docs` builds the site, and fails where a generated page or a reference does.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from conftest import REPO

DOCS = REPO / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
BESIDE = [REPO / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "cpp/README.md")]
NAMES = [str(page.relative_to(REPO)) for page in [*PAGES, *BESIDE]]

LINK = re.compile(r"(?<!\\)\]\((?!\w+:)([^)\s]*)\)")
MENTION = re.compile(r"\bdocs/[\w/-]+\.(?:md|png|py)\b")
NUMBERS = re.compile(r"(?:,? (?:and )?(\d+)(?:-(\d+))?)(?![\w.]*\d)")
"""What follows a mention of the model's page: " 6-9, 13 and 14" are its sections."""

CODE = ("*.py", "*.cpp", "*.h", "*.hpp", "*.toml", "*.yml", "Makefile")
ROOMS = (
    *("calibration", "cpp", "data", "engines", "evaluation", "examples", "export", "package"),
    *("reference", "runtime", "serving", "tests", "training", ".github"),
)


@cache
def hooks():
    """docs/hooks.py, which no package has."""
    spec = importlib.util.spec_from_file_location("docs_hooks", DOCS / "hooks.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@cache
def text_of(page: Path) -> str:
    """A page as the site has it, where no more than a header is needed for that."""
    text = page.read_text(encoding="utf-8")
    if page == DOCS / hooks().C_API_PAGE:
        header = hooks().HEADER.read_text(encoding="utf-8")
        text = text.replace(hooks().C_API_MARK, hooks().c_api(header))
    return text


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```$|`[^`\n]+`", "", text, flags=re.DOTALL | re.MULTILINE)


@cache
def headings(page: Path) -> list[str]:
    text = re.sub(r"^```.*?^```$", "", text_of(page), flags=re.DOTALL | re.MULTILINE)
    return re.findall(r"^#+ (.+)$", text, re.MULTILINE)


def github_slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    plain = heading.replace("`", "").lower()
    return re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")


def site_slug(heading: str) -> str:
    """The anchor that Python-Markdown gives it."""
    plain = re.sub(r"[^\w\s-]", "", heading.replace("`", "")).strip().lower()
    return re.sub(r"[-\s]+", "-", plain)


# Links


@pytest.mark.parametrize("name", NAMES)
def test_links_resolve(name):
    page = REPO / name
    for target in LINK.findall(without_code(text_of(page))):
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        if DOCS in page.parents:
            assert DOCS in file.parents, f"{target} leaves docs/, where the site cannot follow"
        if anchor and file.suffix == ".md":
            assert anchor in map(github_slug, headings(file)), target


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("docs/")])
def test_anchors_are_the_same_on_github_and_in_the_site(name):
    found = headings(REPO / name)
    assert len(set(found)) == len(found), "a heading stands twice"
    for heading in found:
        assert github_slug(heading) == site_slug(heading), heading


def test_every_page_is_in_the_navigation_once():
    navigation = (REPO / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:\n")[2]
    listed = re.findall(r"[\w/-]+\.md", navigation)
    assert sorted(listed) == [str(page.relative_to(DOCS)) for page in PAGES]


# What the code says of the documents


def files_that_mention_documents() -> Iterator[Path]:
    yield from (REPO / name for name in ("Makefile", "pyproject.toml", "mkdocs.yml", "MANIFEST.in"))
    yield from REPO.glob("*.md")
    for room in ROOMS:
        for pattern in (*CODE, "*.md"):
            yield from (REPO / room).rglob(pattern)


def mentions() -> Iterator[tuple[str, str, str]]:
    """File, the document it names, and what follows; comments run on over the line's end."""
    for file in files_that_mention_documents():
        if not file.is_file():
            continue
        text = file.read_text(encoding="utf-8")
        running = re.sub(r"\s*\n\s*(?:#|//|\*)?\s*", " ", text)
        for found in MENTION.finditer(running):
            after = running[found.end() : found.end() + 80].replace("`", "")
            yield str(file.relative_to(REPO)), found[0], after


def test_documents_that_the_code_names_exist():
    seen = list(mentions())
    assert len(seen) > 60
    for file, document, _ in seen:
        assert (REPO / document).is_file(), f"{file} names {document}"


def test_sections_that_the_code_names_exist():
    """`docs/reference/models/dfam.md 19 and 20` are numbers; a name stands behind a comma."""
    model = DOCS / "reference" / "models" / "dfam.md"
    sections = {int(n) for h in headings(model) for n in re.findall(r"^(\d+)\.", h)}
    assert sections == set(range(1, 24))

    for file, document, after in mentions():
        if (REPO / document) == model:
            for first, last in leading_numbers(after):
                assert {first, last} <= sections, f"{file}: {document}{after[:20]}"
        if named := re.match(r", (?=[A-Z])(.*)", after):
            known = headings(REPO / document)
            assert any(named[1].startswith(h) for h in known), f"{file}: {document}{after}"


def leading_numbers(after: str) -> Iterator[tuple[int, int]]:
    place = 0
    while found := NUMBERS.match(after, place):
        yield int(found[1]), int(found[2] or found[1])
        place = found.end()


def test_targets_that_the_documents_name_exist():
    targets = set(re.findall(r"^([\w-]+):", (REPO / "Makefile").read_text("utf-8"), re.MULTILINE))
    for name in NAMES:
        for target in re.findall(r"(?:^|`)make ([a-z][\w-]*)", text_of(REPO / name), re.MULTILINE):
            assert target in targets, f"{name}: make {target}"


# Reference pages leave nothing out


@pytest.mark.parametrize("module", ["ris.runtime", "ris.engines"])
def test_the_python_page_has_every_public_name(module):
    pages = [DOCS / "reference" / f"{name}.md" for name in ("python", "bundle", "errors")]
    text = "".join(map(text_of, pages))
    loaded = importlib.import_module(module)
    for name in loaded.__all__:
        where = getattr(loaded, name), f"{module}.{name}"
        is_error = getattr(where[0], "__module__", "") == "ris.engines.errors"
        assert is_error or re.search(rf"{re.escape(where[1])}\b", text), where[1]
    assert "::: ris.engines.errors" in text


def test_the_command_page_has_every_command():
    text = text_of(DOCS / "reference" / "commands.md")
    scripts = tomllib.loads((REPO / "pyproject.toml").read_text("utf-8"))["project"]["scripts"]
    assert sorted(re.findall(r":prog_name: (\S+)", text)) == sorted(scripts)
    for place in scripts.values():
        assert f":module: {place.partition(':')[0]}\n" in text


def test_the_c_page_has_every_declaration():
    header = hooks().HEADER.read_text(encoding="utf-8")
    page = text_of(DOCS / hooks().C_API_PAGE)
    for function in re.findall(r"^RIS_API [^;]*?\b(ris_\w+)\(", header, re.MULTILINE):
        assert f"### `{function}`" in page
    for status in re.findall(r"^    (RIS_\w+) = ", header, re.MULTILINE):
        assert f"| `{status}` |" in page
    for structure, body in re.findall(r"typedef struct (\w+) \{(.*?)\} \1;", header, re.DOTALL):
        fields = re.sub(r"/\*.*?\*/", "", body, flags=re.DOTALL)
        section = page.partition(f"### `{structure}`")[2].partition("\n##")[0]
        for field in re.findall(r"(\w+)[,;]", fields):
            assert f"| `{field}` |" in section, f"{structure}.{field}"


def test_examples_of_help_texts_become_code():
    class Command:
        help = "Does it.\n\n    \x08\n    Examples:\n      ris-a b \\\n          c\n      ris-d"

    hooks().format_help(Command)
    block = "```sh\nris-a b \\\n    c\nris-d\n```"
    assert Command.help == f"Does it.\n\n**Examples:**\n\n{block}"


# The manner of a page

FIGURE = re.compile(
    r"\b\d[\d.,]*\s(?:ms|s|seconds|minutes|hours|GB|MB|rows/s)\b|\b0\.\d{3,}\b|\d\s?%"
)
SET_BY_US = {
    "reference/models/dfam.md": r".",  # the model's facts and tolerances
    "reference/models/cgformer.md": r".",  # the same
    "reference/models/evfsam.md": r".",
    "reference/models/lisa.md": r".",
    "reference/models/rela.md": r".",
    "guide/batch.md": r".",  # arithmetic over the figures that it links to
    "reference/bundle.md": r"at most 64 MB",
    "reference/serving.md": r"\d+ MB|\d+,? of work",  # limits
    "reference/serving-http.md": r"\d+ MB|\d+ s\b",  # the same
    "reference/evaluation.md": r"95 %\s+of the differences",
    "reference/int8.md": r"99\.99 %",
    "reference/models/demo.md": r"decay 0\.998",
}
"""What is no measurement, by page."""


@pytest.mark.parametrize("page", [p for p in PAGES if "measurements" not in p.parts], ids=str)
def test_a_figure_stands_beside_a_link_to_its_measurement(page):
    """Times, sizes, scores and shares; what we set ourselves is no figure."""
    ours = SET_BY_US.get(str(page.relative_to(DOCS)), "(?!)")
    text = re.sub(r"^```.*?^```$", "", text_of(page), flags=re.DOTALL | re.MULTILINE)
    for block in re.split(r"\n\s*\n|\n(?=- |\d+\. |\| )", text):
        if found := FIGURE.search(re.sub(ours, "", block)):
            assert "measurements/" in block, found[0]


def test_lines_are_no_longer_than_the_codes():
    for name in NAMES:
        text = re.sub(r"^```\n.*?^```$", "", text_of(REPO / name), flags=re.DOTALL | re.MULTILINE)
        for line in text.splitlines():
            is_table = line.startswith("|")
            is_link = len(line.split()) <= 2
            is_generated = name.endswith("c-api.md")
            assert len(line) <= 100 or is_table or is_link or is_generated, f"{name}: {line}"


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_lists_and_tables_stand_behind_a_blank_line(page):
    """The site takes them for text otherwise; GitHub does not."""
    text = re.sub(r"^```.*?^```$", "", text_of(page), flags=re.DOTALL | re.MULTILINE)
    item = re.compile(r"- |\d+\. |\|")
    before = ""
    for line in text.splitlines():
        continues = not before or before.startswith("  ") or item.match(before)
        assert continues or not item.match(line), line
        before = line


def test_the_readme_is_a_page():
    lines = (REPO / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 120
