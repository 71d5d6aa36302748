"""Groups files into documents and puts the files of each in order."""

import re
from collections.abc import Iterator

from fot_jax.data.corpora.catalogue import Order
from fot_jax.data.seeds import generator

SMALL = 320 << 10  # bytes; neighbours are joined until a document has that many
LARGE = 512 << 10  # bytes; a folder with more is split into its subfolders and files

COQ_REQUIRE = re.compile(r"\bRequire\b(?:\s+(?:Import|Export)\b)?([^\"(]*?)\.(?=\s)")
HOL_NEEDS = re.compile(r"\b(?:needs|loadt|loads)\s*\"([^\"]+)\"")


def group_files(sizes: dict[str, int]) -> list[list[str]]:
    """Groups the files (path -> bytes) of a package into documents, each a list of paths sorted by folder.

    A folder of at most LARGE bytes stays whole; a larger one is split into its own files and its
    subfolders, by the same rule. Neighbours are then joined until they have SMALL bytes; what is
    left at the end goes to the last document.
    """
    documents: list[list[str]] = []
    current: list[str] = []
    for unit in _units(sorted(sizes), sizes, depth=0):
        current += unit
        if sum(sizes[path] for path in current) >= SMALL:
            documents.append(current)
            current = []
    if current and documents:
        documents[-1] += current
    elif current:
        documents.append(current)
    return documents


def _units(paths: list[str], sizes: dict[str, int], *, depth: int) -> Iterator[list[str]]:
    """Yields whole folders of at most LARGE bytes, and single files of larger ones."""
    if sum(sizes[path] for path in paths) <= LARGE:
        yield paths
        return
    folders: dict[str, list[str]] = {}
    for path in paths:
        parts = path.split("/")
        if len(parts) == depth + 1:
            yield [path]
        else:
            folders.setdefault(parts[depth], []).append(path)
    for inside in folders.values():
        yield from _units(inside, sizes, depth=depth + 1)


def order_files(paths: list[str], texts: dict[str, str], *, order: Order, seed: int) -> list[str]:
    """Puts the paths of one document into the order of its corpus."""
    if order is Order.RANDOM:
        return [paths[index] for index in generator(seed, "files", paths[0]).permutation(len(paths))]
    return order_by_imports(paths, texts) if order is Order.IMPORTS else paths


def order_by_imports(paths: list[str], texts: dict[str, str]) -> list[str]:
    """Puts each file after the files of the document that it requires; cycles are cut."""
    by_stem: dict[str, str] = {}
    for path in paths:
        by_stem.setdefault(_stem(path), path)
    wanted = {
        path: [by_stem[stem] for stem in required_stems(texts[path]) if by_stem.get(stem, path) != path]
        for path in paths
    }
    done: dict[str, None] = {}
    for path in paths:
        stack = [(path, iter(wanted[path]))]
        open_paths = {path}
        while stack:
            current, rest = stack[-1]
            following = next((name for name in rest if name not in done and name not in open_paths), None)
            if following is None:
                done.setdefault(current)
                stack.pop()
            else:
                open_paths.add(following)
                stack.append((following, iter(wanted[following])))
    return list(done)


def required_stems(text: str) -> list[str]:
    """Finds the stems of the files that a Coq or HOL Light file names: `Require Import A.B.c.`, `needs "F/c.ml"`."""
    coq = [name.rsplit(".", 1)[-1] for names in COQ_REQUIRE.findall(text) for name in names.split()]
    return coq + [_stem(name) for name in HOL_NEEDS.findall(text)]


def _stem(path: str) -> str:
    return path.rsplit("/", 1)[-1].rsplit(".", 1)[0]


def document_name(package: str, paths: list[str]) -> str:
    """Returns the package with the path of the document's only file, or of its first and last."""
    return f"{package} {paths[0]}" if len(paths) == 1 else f"{package} {paths[0]} .. {paths[-1]}"
