"""Pages are short, can be found and point at what is there; prose is plain. Commands: test_command_lines.py."""

import ast
import functools
import io
import pathlib
import re
import tokenize
from collections.abc import Iterator

import pytest
import yaml

ROOT = pathlib.Path(__file__).parents[1]
EXPERIMENTS = sorted((ROOT / "experiments").glob("*.md"))
DOCS = sorted((ROOT / "docs").rglob("*.md"))
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md", *DOCS, *EXPERIMENTS]
README = PAGES[0]
NAMED = r"\b((?:docs|configs|fot_jax|launch|tests|examples|experiments)/[\w/]+\.(?:md|py|gin|ipynb))\b"


def name_of(page: pathlib.Path) -> str:
    return str(page.relative_to(ROOT))


def links_of(page: pathlib.Path) -> list[tuple[pathlib.Path, str]]:
    """Returns the files of the repository that a page links to, each with the anchor."""
    links = re.findall(r"\]\(([^)#:]*)(?:#([^)]*))?\)", page.read_text(encoding="utf-8"))
    return [((page.parent / path).resolve() if path else page, anchor) for path, anchor in links]


def anchors_of(page: pathlib.Path) -> set[str]:
    """Returns the anchors that GitHub, and mkdocs, give the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_and_named_files_exist(page):
    """An experiment may name files of its day."""
    named = [] if page in EXPERIMENTS else re.findall(NAMED, page.read_text(encoding="utf-8"))
    missing = [name for name in named if not (ROOT / name).exists() and "NAME" not in name]
    for target, anchor in links_of(page):
        if not target.exists():
            missing.append(f"link to {target}")
        elif anchor and anchor not in anchors_of(target):
            missing.append(f"#{anchor} of {name_of(target)}")
    assert not missing


def test_every_page_can_be_found_from_the_readme():
    """Follows links from page to page."""
    found, new = set(), {README}
    while new:
        found |= new
        new = {target for page in new for target, _ in links_of(page) if target.suffix == ".md"} - found
    assert not [name_of(page) for page in PAGES if page not in found]


def test_the_site_has_every_page():
    """Holds the navigation of mkdocs.yml to the pages that docs/hooks.py gives it, each once, nested at most twice."""

    def pages(tree: object, depth: int) -> Iterator[str]:
        if isinstance(tree, str):
            assert depth <= 3, tree
            yield tree
        elif isinstance(tree, list):
            for branch in tree:
                yield from pages(next(iter(branch.values())), depth + 1)

    navigation = list(pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"], 0))
    docs = [str(page.relative_to(ROOT / "docs")) for page in DOCS]
    assert sorted(navigation) == sorted([*docs, *map(name_of, EXPERIMENTS), "changelog.md", "contributing.md"])


WORDS = {"README.md": 700} | {name_of(page): 900 for page in DOCS}


@pytest.mark.parametrize("page", WORDS)
def test_pages_are_short(page):
    """Counts everything between spaces: prose, tables and code blocks, as `wc -w` does."""
    assert len((ROOT / page).read_text(encoding="utf-8").split()) <= WORDS[page]


def test_the_changelog_has_at_most_60_lines_a_version():
    sections = re.split(r"^## ", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    assert sections
    assert all(len(section.splitlines()) <= 60 for section in sections)


def test_the_figures_of_the_readme_are_recorded():
    """Finds every figure of its result table in an experiment."""
    text = README.read_text(encoding="utf-8")
    figures = re.findall(r"\d+\.\d{3}|\d+ of \d+", "".join(re.findall(r"^\|.*$", text, flags=re.MULTILINE)))
    recorded = "".join(page.read_text(encoding="utf-8") for page in EXPERIMENTS)
    assert len(figures) >= 8
    assert not [figure for figure in figures if figure not in recorded]


FOLDERS = ("fot_jax", "launch", "configs", "tests", "docs", "experiments")
SOURCES = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
# Words that readers stumble over -> what to write. Idioms that hold one of them are taken out before.
OBSCURE = {
    r"\bbeside\b": "next to, with, or in addition to",
    r"\bstands?\b": "is, or has",
    r"\bl(?:ies|ie)\b": "is, or are",
    r"\bmend(?:s|ed|ing)?\b": "fix",
    r"\bso (?:many|much)\b": "that many",
}
IDIOMS = r"stands? for|stand-in|standalone|stand alone|understand\w*|so much (?:as|that)|so many (?:as|that)"
OPENINGS = ("Of ", "Those ", "The same ", "As ", "What ")


@functools.cache
def nodes_of(path: pathlib.Path) -> list[ast.AST]:
    """Returns all nodes of a module's syntax tree."""
    return list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


def prose(path: pathlib.Path) -> Iterator[tuple[int, str]]:
    """Yields the lines of a page outside of code, or of a module's docstrings and comments."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        outside = re.sub(r"```.*?```|`[^`\n]*`", lambda match: "\n" * match[0].count("\n"), text, flags=re.DOTALL)
        yield from enumerate(outside.splitlines(), 1)
        return
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string
    for node in nodes_of(path):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and (docstring := ast.get_docstring(node)):
            first = node.body[0].lineno
            yield from enumerate(docstring.splitlines(), first)


def test_prose_is_plain():
    """Holds docs, docstrings and comments to words that readers know (CHANGELOG keeps its history)."""
    found = []
    for path in [page for page in PAGES if page.name != "CHANGELOG.md"] + SOURCES:
        for number, line in prose(path):
            plain = re.sub(IDIOMS, "", line)
            found += [
                f"{path.relative_to(ROOT)}:{number}: {match[0]!r}: write {fix}"
                for word, fix in OBSCURE.items()
                if (match := re.search(word, plain, re.IGNORECASE))
            ]
    assert not found, "\n".join(found)


def test_docstrings_begin_with_a_verb_or_a_noun():
    """Holds the first line of every docstring of the product to a phrase with its verb or its noun."""
    found = []
    for path in SOURCES:
        for node in nodes_of(path):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
                opening = (ast.get_docstring(node) or "").splitlines()[:1]
                if opening and opening[0].startswith(OPENINGS):
                    found.append(f"{path.relative_to(ROOT)}:{node.body[0].lineno}: {opening[0]}")
    assert not found, "\n".join(found)


def test_names_of_tests_are_short():
    """Keeps names at 60 characters; the sentence is in the docstring."""
    long = [
        f"{path.relative_to(ROOT)}: {node.name}"
        for path in SOURCES
        for node in nodes_of(path)
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_") and len(node.name) > 60
    ]
    assert not long, "\n".join(long)
