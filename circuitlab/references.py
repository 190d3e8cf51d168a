"""Sources that tasks, metrics and methods name, and their BibTeX."""

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """One citable source.

    Attributes:
        key: BibTeX key, unique in the library.
        authors: Names as "Family, Given", in the order of the source.
        title: Title as printed.
        year: Year of publication.
        arxiv: arXiv identifier, or None.
        url: Address, or None.

    Example:
        >>> reference = Reference(key="a2020", title="A title", authors=("A. Author",), year=2020)
        >>> reference.bibtex().splitlines()[0]
        '@misc{a2020,'
    """

    key: str
    authors: tuple[str, ...]
    title: str
    year: int
    arxiv: str | None = None
    url: str | None = None

    def bibtex(self) -> str:
        """The entry as BibTeX, one field a line.

        Returns:
            The BibTeX entry.
        """
        kind = "article" if self.arxiv else "misc"
        fields = [("author", " and ".join(self.authors)), ("title", "{" + self.title + "}"), ("year", str(self.year))]
        if self.arxiv:
            fields += [("journal", f"arXiv preprint arXiv:{self.arxiv}"), ("eprint", self.arxiv)]
        if self.url:
            fields.append(("url", self.url))
        body = ",\n".join(f"  {name} = {{{value}}}" for name, value in fields)
        return f"@{kind}{{{self.key},\n{body}\n}}"


def _arxiv(arxiv: str, key: str, authors: str, title: str) -> Reference:
    """A paper on arXiv. The key has its year; authors are separated by semicolons."""
    year = int(re.findall("[0-9]{4}", key)[0])
    return Reference(key=key, authors=tuple(authors.split("; ")), title=title, year=year, arxiv=arxiv)


WANG_2023 = _arxiv(
    "2211.00593",
    "wang2023interpretability",
    "Wang, Kevin; Variengien, Alexandre; Conmy, Arthur; Shlegeris, Buck; Steinhardt, Jacob",
    "Interpretability in the Wild: a Circuit for Indirect Object Identification in GPT-2 small",
)
CONMY_2023 = _arxiv(
    "2304.14997",
    "conmy2023towards",
    "Conmy, Arthur; Mavor-Parker, Augustine N.; Lynch, Aengus; Heimersheim, Stefan; Garriga-Alonso, Adria",
    "Towards Automated Circuit Discovery for Mechanistic Interpretability",
)
SYED_2023 = _arxiv(
    "2310.10348",
    "syed2023attribution",
    "Syed, Aaquib; Rager, Can; Conmy, Arthur",
    "Attribution Patching Outperforms Automated Circuit Discovery",
)
HANNA_2023 = _arxiv(
    "2305.00586",
    "hanna2023does",
    "Hanna, Michael; Liu, Ollie; Variengien, Alexandre",
    "How does GPT-2 compute greater-than?: Interpreting mathematical abilities in a pre-trained language model",
)
HANNA_2024 = _arxiv(
    "2403.17806",
    "hanna2024have",
    "Hanna, Michael; Pezzelle, Sandro; Belinkov, Yonatan",
    "Have Faith in Faithfulness: Going Beyond Circuit Overlap When Finding Model Mechanisms",
)
MARKS_2024 = _arxiv(
    "2403.19647",
    "marks2024sparse",
    "Marks, Samuel; Rager, Can; Michaud, Eric J.; Belinkov, Yonatan; Bau, David; Mueller, Aaron",
    "Sparse Feature Circuits: Discovering and Editing Interpretable Causal Graphs in Language Models",
)
MIB_2025 = _arxiv(
    "2504.13151",
    "mueller2025mib",
    "Mueller, Aaron; Geiger, Atticus; Wiegreffe, Sarah; others",
    "MIB: A Mechanistic Interpretability Benchmark",
)
BHASKAR_2024 = _arxiv(
    "2406.16778",
    "bhaskar2024finding",
    "Bhaskar, Adithya; Wettig, Alexander; Friedman, Dan; Chen, Danqi",
    "Finding Transformer Circuits with Edge Pruning",
)
LI_2024 = _arxiv(
    "2409.09951",
    "li2024optimal",
    "Li, Maximilian; Janson, Lucas",
    "Optimal ablation for interpretability",
)
FERRANDO_2024 = _arxiv(
    "2403.00824",
    "ferrando2024information",
    "Ferrando, Javier; Voita, Elena",
    "Information Flow Routes: Automatically Interpreting Language Models at Scale",
)
RELP_2025 = _arxiv(
    "2508.21258",
    "jafari2025relp",
    "Jafari, Farnoush Rezaei; Eberle, Oliver; Khakzar, Ashkan; Nanda, Neel",
    "RelP: Faithful and Efficient Circuit Discovery in Language Models via Relevance Patching",
)

# The papers of each scoring method.
METHOD_SOURCES = {
    "eap-ig": (HANNA_2024,),
    "eap": (SYED_2023,),
    "eap-ig-activations": (MARKS_2024, HANNA_2024),
    "clean-corrupted": (HANNA_2024,),
    "relp": (RELP_2025,),
    "ifr": (FERRANDO_2024,),
    "random": (MIB_2025,),
    "exact": (SYED_2023,),
    "sweep": (WANG_2023,),
    "acdc": (CONMY_2023,),
    "edge-pruning": (BHASKAR_2024,),
    "ugs": (LI_2024,),
}
