"""What the pages point at is there."""

import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


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
    assert not [page.name for page in PAGES[2:] if f"(docs/{page.name})" not in readme]
