"""Sources that tasks, metrics and methods name, and their BibTeX."""

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


WANG_2023 = Reference(
    key="wang2023interpretability",
    authors=("Wang, Kevin", "Variengien, Alexandre", "Conmy, Arthur", "Shlegeris, Buck", "Steinhardt, Jacob"),
    title="Interpretability in the Wild: a Circuit for Indirect Object Identification in GPT-2 small",
    year=2023,
    arxiv="2211.00593",
)
CONMY_2023 = Reference(
    key="conmy2023towards",
    authors=(
        "Conmy, Arthur",
        "Mavor-Parker, Augustine N.",
        "Lynch, Aengus",
        "Heimersheim, Stefan",
        "Garriga-Alonso, Adria",
    ),
    title="Towards Automated Circuit Discovery for Mechanistic Interpretability",
    year=2023,
    arxiv="2304.14997",
)
SYED_2023 = Reference(
    key="syed2023attribution",
    authors=("Syed, Aaquib", "Rager, Can", "Conmy, Arthur"),
    title="Attribution Patching Outperforms Automated Circuit Discovery",
    year=2023,
    arxiv="2310.10348",
)
HANNA_2023 = Reference(
    key="hanna2023does",
    authors=("Hanna, Michael", "Liu, Ollie", "Variengien, Alexandre"),
    title="How does GPT-2 compute greater-than?: Interpreting mathematical abilities in a pre-trained language model",
    year=2023,
    arxiv="2305.00586",
)
HANNA_2024 = Reference(
    key="hanna2024have",
    authors=("Hanna, Michael", "Pezzelle, Sandro", "Belinkov, Yonatan"),
    title="Have Faith in Faithfulness: Going Beyond Circuit Overlap When Finding Model Mechanisms",
    year=2024,
    arxiv="2403.17806",
)
MARKS_2024 = Reference(
    key="marks2024sparse",
    authors=("Marks, Samuel", "Rager, Can", "Michaud, Eric J.", "Belinkov, Yonatan", "Bau, David", "Mueller, Aaron"),
    title="Sparse Feature Circuits: Discovering and Editing Interpretable Causal Graphs in Language Models",
    year=2024,
    arxiv="2403.19647",
)
MIB_2025 = Reference(
    key="mueller2025mib",
    authors=("Mueller, Aaron", "Geiger, Atticus", "Wiegreffe, Sarah", "others"),
    title="MIB: A Mechanistic Interpretability Benchmark",
    year=2025,
    arxiv="2504.13151",
)
BHASKAR_2024 = Reference(
    key="bhaskar2024finding",
    authors=("Bhaskar, Adithya", "Wettig, Alexander", "Friedman, Dan", "Chen, Danqi"),
    title="Finding Transformer Circuits with Edge Pruning",
    year=2024,
    arxiv="2406.16778",
)
LI_2024 = Reference(
    key="li2024optimal",
    authors=("Li, Maximilian", "Janson, Lucas"),
    title="Optimal ablation for interpretability",
    year=2024,
    arxiv="2409.09951",
)
FERRANDO_2024 = Reference(
    key="ferrando2024information",
    authors=("Ferrando, Javier", "Voita, Elena"),
    title="Information Flow Routes: Automatically Interpreting Language Models at Scale",
    year=2024,
    arxiv="2403.00824",
)
RELP_2025 = Reference(
    key="jafari2025relp",
    authors=("Jafari, Farnoush Rezaei", "Eberle, Oliver", "Khakzar, Ashkan", "Nanda, Neel"),
    title="RelP: Faithful and Efficient Circuit Discovery in Language Models via Relevance Patching",
    year=2025,
    arxiv="2508.21258",
)
