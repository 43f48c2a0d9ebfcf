"""What to cite: the mixture's paper and the paper of each method, as BibTeX."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["MIXTURE", "Work", "bibtex", "work_of"]


@dataclass(frozen=True)
class Work:
    """A published work; `link` is where it can be read. `kind` is BibTeX's type of entry."""

    key: str
    title: str
    authors: str
    venue: str
    year: int
    link: str
    kind: str = "inproceedings"

    def bibtex(self) -> str:
        """One entry."""
        where = "booktitle" if self.kind == "inproceedings" else "howpublished"
        return (
            f"@{self.kind}{{{self.key},\n"
            f"  title = {{{self.title}}},\n"
            f"  author = {{{self.authors}}},\n"
            f"  {where} = {{{self.venue}}},\n"
            f"  year = {{{self.year}}},\n"
            f"  url = {{{self.link}}}\n"
            "}"
        )


MIXTURE = Work(
    "moe_distillation",
    "Four eyes see more than two: Dataset Distillation with Mixture-of-Experts",
    # Submitted without names. The inner braces keep BibTeX from taking the words for a person.
    "{Authors as in the published version}",
    "OpenReview, submitted to ICLR",
    2025,
    "https://openreview.net/forum?id=z2WCyBO923",
    "misc",
)

_ARXIV = "https://arxiv.org/abs/"
_IDC = Work(
    "idc",
    "Dataset Condensation via Efficient Synthetic-Data Parameterization",
    "Kim, Jang-Hyun and Kim, Jinuk and Oh, Seong Joon and Yun, Sangdoo and Song, Hwanjun and "
    "Jeong, Joonhyun and Ha, Jung-Woo and Song, Hyun Oh",
    "ICML",
    2022,
    f"{_ARXIV}2205.14959",
)
_IDM = Work(
    "idm",
    "Improved Distribution Matching for Dataset Condensation",
    "Zhao, Ganlong and Li, Guanbin and Qin, Yipeng and Yu, Yizhou",
    "CVPR",
    2023,
    f"{_ARXIV}2307.09742",
)
_WORKS = {
    "idc": _IDC,
    "idc_i": _IDC,
    "idm": _IDM,
    "idm_plain": _IDM,
    "mtt": Work(
        "mtt",
        "Dataset Distillation by Matching Training Trajectories",
        "Cazenavette, George and Wang, Tongzhou and Torralba, Antonio and Efros, Alexei A. and "
        "Zhu, Jun-Yan",
        "CVPR",
        2022,
        f"{_ARXIV}2203.11932",
    ),
    "rded": Work(
        "rded",
        "On the Diversity and Realism of Distilled Dataset: An Efficient Dataset Distillation "
        "Paradigm",
        "Sun, Peng and Shi, Bei and Yu, Daiwei and Lin, Tao",
        "CVPR",
        2024,
        f"{_ARXIV}2312.03526",
    ),
    "dc": Work(
        "dc",
        "Dataset Condensation with Gradient Matching",
        "Zhao, Bo and Mopuri, Konda Reddy and Bilen, Hakan",
        "ICLR",
        2021,
        f"{_ARXIV}2006.05929",
    ),
    "dsa": Work(
        "dsa",
        "Dataset Condensation with Differentiable Siamese Augmentation",
        "Zhao, Bo and Bilen, Hakan",
        "ICML",
        2021,
        f"{_ARXIV}2102.08259",
    ),
    "dm": Work(
        "dm",
        "Dataset Condensation with Distribution Matching",
        "Zhao, Bo and Bilen, Hakan",
        "WACV",
        2023,
        f"{_ARXIV}2110.04181",
    ),
    "herding": Work(
        "herding",
        "Herding Dynamical Weights to Learn",
        "Welling, Max",
        "ICML",
        2009,
        "https://doi.org/10.1145/1553374.1553517",
    ),
    "kcenter": Work(
        "kcenter",
        "Active Learning for Convolutional Neural Networks: A Core-Set Approach",
        "Sener, Ozan and Savarese, Silvio",
        "ICLR",
        2018,
        f"{_ARXIV}1708.00489",
    ),
}


def work_of(method: str) -> Work | None:
    """The paper of a method; None for a baseline or for a method of another package."""
    return _WORKS.get(method)


def bibtex(methods: Iterable[str], mixture: bool) -> str:
    """Entries of the mixture's paper, if there is a mixture, and of each method, once."""
    works = [MIXTURE] if mixture else []
    works += [work for method in methods if (work := work_of(method))]
    return "\n\n".join(work.bibtex() for work in dict.fromkeys(works))
