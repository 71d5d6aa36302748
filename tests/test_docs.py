"""Pages point at what is there, and prose is plain."""

import ast
import io
import pathlib
import re
import tokenize
from collections.abc import Iterator

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_named_files_exist(page):
    text = page.read_text()
    links = [page.parent / link for link in re.findall(r"\]\(([^)#:]+)\)", text)]
    named = [
        ROOT / name for name in re.findall(r"\b((?:docs|configs|fot_jax|launch|tests)/[\w/]+\.(?:md|py|gin))\b", text)
    ]
    assert not [str(path.relative_to(ROOT)) for path in {*links, *named} if not path.exists()]


def test_every_page_can_be_found_from_the_readme():
    readme = PAGES[0].read_text()
    assert not [page.name for page in PAGES[1:] if f"({page.relative_to(ROOT)})" not in readme]


SOURCES = [path for folder in ("fot_jax", "launch", "configs", "tests") for path in (ROOT / folder).rglob("*.py")]
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
    for node in ast.walk(ast.parse(text)):
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
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
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
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_") and len(node.name) > 60
    ]
    assert not long, "\n".join(long)
