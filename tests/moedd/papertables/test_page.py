"""Pages and figures from a fixed set of records: every number, every flag, every mark."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from tablefactories import record

from moedd.papertables.page import BEGIN, END, write_report
from moedd.papertables.rows import NO_DIVERSITY, Identity, random_identity
from moedd_loaders.errors import DataError
from moedd_loaders.records import Record

MULTI = Identity("distilled", "idc_i", 5, 2, fuse="mixup")
SINGLE = Identity("distilled", "idc_i", 10, 1)
PLAIN = MULTI._replace(fuse="none")


def fixed_records() -> list[Record]:
    """Table 1 of IDC on two networks with three sets, Tables 3 and 4 with one."""
    made = []
    for seed in range(3):
        for repeat in range(2):
            for network, shift in (("convnet3", 0), ("alexnet", -8)):
                own = {"seed": seed, "repeat": repeat, "network": network}
                made.append(record(MULTI, 52 + shift + seed + repeat, **own))
                one = {**own, "operations": 1.2e14}
                made.append(record(SINGLE, 50 + shift + seed + repeat, **one))
    fitted = {"operations": 2e14, "steps": 675, "fraction": 0.003376}
    made += [record(SINGLE, 51.5, seed=seed, **fitted) for seed in range(3)]
    made += [record(random_identity(10), 40 + n, seed=n) for n in range(3)]
    made.append(record(random_identity(10), 10.2, network="alexnet"))
    made.append(record(MULTI._replace(fuse="vanilla"), 51.9))
    made.append(record(PLAIN, 51.0))
    made.append(record(PLAIN._replace(overrides=NO_DIVERSITY), 50.5))
    return made


def report(folder: Path, records: list[Record]) -> str:
    write_report(folder / "results.md", records, "benchmarks/records")
    return (folder / "results.md").read_text()


def row(text: str, title: str) -> list[str]:
    """Cells of the first table row of this title."""
    line = next(line for line in text.splitlines() if line.startswith(f"| {title} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    return report(tmp_path_factory.mktemp("page"), fixed_records())


def test_a_line_shows_mean_spread_counts_and_the_papers_number(page: str) -> None:
    """Set means 52.5, 53.5 and 54.5: 53.5 and 1.0."""
    assert row(page, "idc_i 5x2, cross-expert mixup") == [
        "idc_i 5x2, cross-expert mixup",
        "0.002 (400 steps)",
        "200",
        "301",
        "53.5 ± 1.0 (3 sets, 6)",
        "53.32",
        "45.5 ± 1.0 (3 sets, 6)",
        "46.34",
    ]


def test_equal_arithmetic_stands_beside_equal_schedule(page: str) -> None:
    same = row(page, "idc_i 10x1, no mixup")
    assert same[1:3] == ["0.002 (400 steps)", "120"]
    assert same[5] == "52.73"
    fitted = row(page, "idc_i 10x1, no mixup, at the arithmetic of 5x2")
    assert fitted[1:3] == ["0.003376 (675 steps)", "200"]
    # The paper's number belongs to the other one.
    assert fitted[4:6] == ["51.5 ± 0.0 (3 sets, 3)", ""]


def test_one_set_is_said_and_chance_is_flagged(page: str) -> None:
    assert row(page, "idc_i 5x2, vanilla mixup")[4] == "51.9 (one set, 1)"
    random = row(page, "random 10")
    assert random[4] == "41.0 ± 1.0 (3 draws)"
    assert random[6] == "10.2 (one draw, **at chance**)"


def test_table_4_says_what_the_diversity_step_did_to_dependence(tmp_path: Path) -> None:
    bare = PLAIN._replace(overrides=NO_DIVERSITY)
    made = [record(PLAIN, 50, seed=s, dependence=0.2 + s / 10) for s in range(3)]
    made += [record(bare, 50, dependence=0.45), record(SINGLE, 49)]
    text = report(tmp_path, made)
    fourth = text.split("#### Table 4")[1].split("####")[0]
    assert row(fourth, "")[4] == "dependence"
    assert row(fourth, "idc_i 5x2, no mixup")[4] == "0.300 ± 0.100"
    assert row(fourth, "idc_i 5x2, no diversity, no mixup")[4] == "0.450"
    assert row(fourth, "idc_i 10x1, no mixup")[4] == ""
    assert "dependence |" not in text.split("#### Table 4")[0]


def test_gaps_have_intervals_or_say_that_there_is_one_set(page: str) -> None:
    gap = row(page, "idc_i 5x2 - idc_i 10x1")
    # Difference 2 with deviation 1 on both sides of three: error sqrt(2/3), 4 degrees of freedom,
    # whose 97.5 % point is 2.7764: 2.27 each way.
    assert gap[2] == "+2.0 [-0.3, +4.3]"
    assert gap[3] == "+0.59"
    assert gap[4:] == ["+2.0 [-0.3, +4.3]", "+5.65"]
    assert row(page, "idc_i 5x2: cross-expert - vanilla mixup")[2] == "+0.6 (one set)"


def test_verdicts_are_plain_words(page: str) -> None:
    assert (
        "* idc_i 5x2 - idc_i 10x1: +2.0 on average, in favour on 2 of 2 networks (paper: +3.1); "
        "no 95 % interval leaves out zero, so the two cannot be told apart." in page
    )
    assert (
        "* idc_i 5x2: diversity - none, without mixup: +0.5 on average, in favour on 1 of 1 "
        "network (paper: +0.6); one set on a side, so nothing follows for the method." in page
    )


def test_clear_gaps_are_said_to_be_clear(tmp_path: Path) -> None:
    made = [record(MULTI, 60 + 0.1 * s, seed=s) for s in range(3)]
    made += [record(MULTI, 40 + 0.1 * s, seed=s, network="vgg11") for s in range(3)]
    for network in ("convnet3", "vgg11"):
        made += [record(SINGLE, 50 + 0.1 * s, seed=s, network=network) for s in range(3)]
    text = report(tmp_path, made)
    assert "; 2 of 2 95 % intervals leave out zero (1 in favour, 1 against)." in text
    assert row(text, "idc_i 5x2 - idc_i 10x1")[2].startswith("**+10.0 [")


def test_everything_that_decides_a_number_is_stated(page: str) -> None:
    for said in (
        "Recipe `common-300`, 300 epochs: learning rate 0.01, batches of 256 for all networks.",
        "10,000 test images, chance 10 %; ConvNets of width 128; float32.",
        "Real data: read from a folder",
        "Made on: two cores; 2 threads per cell.",
        "from 34 records in `benchmarks/records` (cifar10)",
        "no independent evidence",
    ):
        assert said in page, said


def test_one_thread_is_no_plural(tmp_path: Path) -> None:
    made = record(MULTI, 50)
    made.config["threads"] = 1
    assert "Made on: two cores; 1 thread per cell." in report(tmp_path, [made])


def test_rates_are_stated_per_network_where_they_differ(tmp_path: Path) -> None:
    made = [record(MULTI, 50), record(MULTI, 40, network="vgg11")]
    made[1].config["lr"] = 5e-4
    text = report(tmp_path, made)
    assert (
        "learning rate 0.01, batches of 256 for ConvNet-3; learning rate 0.0005, batches of 256 "
        "for VGG11" in text
    )


def test_the_best_of_several_tests_is_marked(tmp_path: Path) -> None:
    text = report(tmp_path, [record(MULTI, 50, protocol="idc-300-best")])
    assert "**the best of several tests on the test images**" in text


def test_every_record_is_shown(tmp_path: Path) -> None:
    """Also what stands in none of the paper's tables: no cherry-picking."""
    records = [*fixed_records(), record(Identity("distilled", "dm", 7, 1), 33.3)]
    text = report(tmp_path, records)
    assert "#### Other lines" in text
    assert row(text, "dm 7x1, no mixup")[4] == "33.3 (one set, 1)"
    accuracy = [line for line in text.splitlines() if re.search(r"\((one|\d+) (set|draw)s?", line)]
    # Later tables repeat lines of earlier ones, Table 4 on one network.
    lines = {line.split("|")[1]: line for line in accuracy[::-1] if "[" not in line}
    networks = sum(int(n) for line in lines.values() for n in re.findall(r"sets?, (\d+)\b", line))
    draws = [n for line in lines.values() for n in re.findall(r"\((one|\d+) draw", line)]
    assert networks + sum(1 if n == "one" else int(n) for n in draws) == len(records)


def test_data_that_the_paper_does_not_have_get_no_column_for_it(tmp_path: Path) -> None:
    text = report(tmp_path, [record(MULTI, 50, data="digits"), record(SINGLE, 49, data="digits")])
    header = next(line for line in text.splitlines() if line.startswith("|  | schedule"))
    assert "paper" not in header
    assert "ConvNet-3" in header


# ------------------------------------------------------------------------------ the file


def test_what_people_wrote_stays(tmp_path: Path) -> None:
    page = tmp_path / "results.md"
    page.write_text("# Results\n\nMy own words.\n")
    once = report(tmp_path, fixed_records())
    assert once.startswith("# Results\n\nMy own words.\n\n" + BEGIN)
    page.write_text(once + "\nMore words.\n")
    twice = report(tmp_path, fixed_records())
    assert twice == once + "\nMore words.\n"
    fewer = report(tmp_path, fixed_records()[:1])
    assert fewer.count(BEGIN) == fewer.count(END) == 1
    assert "from 1 records" in fewer
    assert fewer.endswith("More words.\n")


def test_a_page_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no records of table cells lie in benchmarks/records"):
        report(tmp_path, [])
    assert list(tmp_path.iterdir()) == []


def test_figures_lie_beside_the_page_and_are_shown(tmp_path: Path) -> None:
    text = report(tmp_path, fixed_records())
    shown = re.findall(r"!\[[^\]]+\]\((figures/[^)]+)\)", text)
    assert [name.rsplit("-", 1)[1] for name in shown] == ["gaps.svg", "mixup.svg", "diversity.svg"]
    assert sorted(p.name for p in (tmp_path / "figures").iterdir()) == sorted(
        name.removeprefix("figures/") for name in shown
    )


def test_figures_are_pictures_with_the_numbers_in_them_and_always_the_same(tmp_path: Path) -> None:
    report(tmp_path, fixed_records())
    first = {path.name: path.read_bytes() for path in (tmp_path / "figures").iterdir()}
    report(tmp_path, fixed_records())
    assert {path.name: path.read_bytes() for path in (tmp_path / "figures").iterdir()} == first
    for name, content in first.items():
        root = ElementTree.fromstring(content)
        words = {text.text for text in root.iter("{http://www.w3.org/2000/svg}text")}
        assert {"one set", "paper"} <= words, name
        assert any(word and word.startswith("several sets, ") for word in words), name
        assert any(word and word.startswith("ConvNet-3") for word in words), name


def test_the_figure_of_gaps_also_shows_them_at_equal_arithmetic(tmp_path: Path) -> None:
    """What two experts gain beside one that had as much computing is not left to the tables."""
    report(tmp_path, fixed_records())
    (path,) = (tmp_path / "figures").glob("*-gaps.svg")
    root = ElementTree.fromstring(path.read_bytes())
    words = " ".join(text.text or "" for text in root.iter("{http://www.w3.org/2000/svg}text"))
    assert "idc_i 5x2 - idc_i 10x1, equal arithmetic" in words
    # Without the claim itself there is no figure of it.
    fitted = {"operations": 2e14, "steps": 675, "fraction": 0.003376}
    alone = tmp_path / "alone"
    alone.mkdir()
    report(alone, [record(MULTI, 50), record(SINGLE, 51, **fitted)])
    assert not list(alone.glob("figures/*-gaps.svg"))


def test_an_interval_of_tens_of_points_is_cut_and_says_so(tmp_path: Path) -> None:
    """Two sets ten points apart reach 63 points each way, two that are half of one apart 3."""
    wide = [record(MULTI, 45 + 10 * s, seed=s) for s in range(2)]
    narrow = [record(MULTI, 50 + s / 2, seed=s) for s in range(2)]
    one = [record(SINGLE, 49 + s / 10, seed=s) for s in range(2)]
    for folder, made, said in (("wide", wide, True), ("narrow", narrow, False)):
        (tmp_path / folder).mkdir()
        report(tmp_path / folder, [*made, *one])
        (path,) = (tmp_path / folder / "figures").glob("*-gaps.svg")
        assert ("arrow: goes on" in path.read_text()) is said
