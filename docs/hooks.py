"""Adds the pages outside of docs/ to the site that mkdocs builds, and turns links to files into links to pages.

In the repository a page links to another file, as docs/memory.md does to `../experiments/smollm2.md`. The site has that
page as experiments/smollm2.md, next to memory.md.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"(?<=\]\()(?P<path>[^)#:]+)(?P<anchor>#[^)]*)?(?=\))")
OUTSIDE = {"CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md", "README.md": "index.md"}


def place_of(file: str) -> str:
    """Returns where a file of the repository is in the site."""
    return OUTSIDE.get(file, file.removeprefix("docs/"))


def file_of(place: str) -> str:
    """Returns the file of the repository that a page of the site is made from."""
    made_from = {OUTSIDE[name]: name for name in OUTSIDE if name != "README.md"}
    return made_from.get(place, place if place.startswith("experiments/") else f"docs/{place}")


def on_files(files: Files, config: Any) -> Files:
    """Adds CHANGELOG.md, CONTRIBUTING.md and the experiments."""
    names = ["CHANGELOG.md", "CONTRIBUTING.md", *(f"experiments/{path.name}" for path in ROOT.glob("experiments/*.md"))]
    for name in names:
        files.append(File.generated(config, place_of(name), abs_src_path=str(ROOT / name)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Rewrites the links of a page; mkdocs then reports those that lead nowhere."""
    place = page.file.src_uri
    folder = posixpath.dirname(file_of(place))

    def link(match: re.Match[str]) -> str:
        target = place_of(posixpath.normpath(posixpath.join(folder, match["path"])))
        return posixpath.relpath(target, posixpath.dirname(place) or ".") + (match["anchor"] or "")

    return LINK.sub(link, markdown)
