"""The README's figure: from the records alone, between its marks."""

from __future__ import annotations

from pathlib import Path

import pytest
from runfactories import cli
from tablefactories import record

from moedd.papertables.headline import BEGIN, END, write_headline
from moedd.papertables.rows import Identity
from moedd.papertables.store import append_cell
from moedd_loaders.errors import DataError, UsageError

MULTI = Identity("distilled", "idc_i", 5, 2, fuse="mixup")
SINGLE = Identity("distilled", "idc_i", 10, 1)
TEXT = f"# Mine\n\n{BEGIN}\nold\n{END}\n\nMore.\n"


def test_it_is_shown_between_the_marks(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(TEXT)
    made = [record(identity, 50 + s, seed=s) for identity in (MULTI, SINGLE) for s in range(3)]
    for one in made:
        append_cell(tmp_path / "records", "x", one)
    given = ["--records", str(tmp_path / "records"), "--readme", str(readme)]
    given += ["--note", "Made of lossy images."]
    told = cli("tables", "--report", str(tmp_path / "docs" / "results.md"), *given)
    assert told.code == 0, told.err
    figure = tmp_path / "docs" / "figures" / "headline.svg"
    assert told.out.splitlines()[-2:] == [str(readme), str(figure)]
    assert figure.is_file()
    text = readme.read_text()
    assert text.startswith(f"# Mine\n\n{BEGIN}\n![Two experts minus one of")
    assert text.endswith(f"{END}\n\nMore.\n")
    assert "(docs/figures/headline.svg)" in text
    assert "cifar10, recipe `common-300`, up to 3 sets of each kind" in text
    assert "old" not in text
    page = (tmp_path / "docs" / "results.md").read_text()
    assert text.count("Made of lossy images.") == page.count("Made of lossy images.") == 1


def test_without_a_comparison_with_one_expert_it_is_of_mixup(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(TEXT)
    made = [record(MULTI._replace(fuse=fuse), 50) for fuse in ("mixup", "vanilla", "none")]
    write_headline(readme, tmp_path / "results.md", made)
    assert "![Mixup across two experts" in readme.read_text()
    assert "one set of each kind; all tables: [results.md](results.md)." in readme.read_text()
    assert (tmp_path / "figures" / "headline.svg").is_file()


def test_what_cannot_be_shown_is_refused(tmp_path: Path) -> None:
    readme, page = tmp_path / "README.md", tmp_path / "results.md"
    readme.write_text("# Mine\n")
    with pytest.raises(UsageError, match="does not say where its figure goes"):
        write_headline(readme, page, [record(MULTI, 50), record(SINGLE, 49)])
    readme.write_text(TEXT)
    with pytest.raises(DataError, match="no records compare two experts with one"):
        write_headline(readme, page, [record(MULTI, 50)])
    assert readme.read_text() == TEXT
    assert not (tmp_path / "figures").exists()


def test_the_repositorys_readme_has_the_marks() -> None:
    text = (Path(__file__).parents[3] / "README.md").read_text()
    assert BEGIN in text.split(END)[0]
