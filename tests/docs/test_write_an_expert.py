"""The expert of docs/write-an-expert.md, installed as written there, distils a set."""

from __future__ import annotations

import importlib
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from runfactories import cli, tiny_arguments

from moedd.experts import base, expert_class, method_names
from moedd_loaders.errors import UsageError
from moedd_loaders.validate import validate_set

PAGE = Path(__file__).parents[2] / "docs" / "write-an-expert.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)


def install(folder: Path, source: str, project: str) -> str:
    """Lay a package out as pip would; returns the name of its module."""
    table = tomllib.loads(project)["project"]
    points = table["entry-points"]["moedd.experts"]
    module = next(iter(points.values())).split(":")[0]
    (folder / f"{module}.py").write_text(source)
    info = folder / f"{table['name'].replace('-', '_')}-{table['version']}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {table['name']}\nVersion: {table['version']}\n"
    )
    lines = [f"{name} = {value}\n" for name, value in points.items()]
    (info / "entry_points.txt").write_text("[moedd.experts]\n" + "".join(lines))
    return module


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on `sys.path`; what is registered from it is forgotten afterwards."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setattr(base, "_REGISTRY", dict(base._REGISTRY))
    before = set(sys.modules)
    yield folder
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(folder)):
            del sys.modules[name]
    importlib.invalidate_caches()


def test_the_page_shows_one_expert_in_under_60_lines() -> None:
    (source,) = blocks("python")
    assert len(source.splitlines()) < 60
    assert len(blocks("toml")) == 1


def test_the_expert_of_the_page_distils_a_set(site: Path, moedd_home: Path) -> None:
    (source,), (project,) = blocks("python"), blocks("toml")
    module = install(site, source, project)
    assert "meanmatch" in method_names()
    assert module not in sys.modules
    told = cli("experts", "meanmatch")
    assert told.code == 0, told.err
    assert "meanmatch.batch_real" in told.out
    name = "digits-meanmatch+idm-1x2"
    tiny = ("meanmatch.steps=8", "meanmatch.batch_real=16", "diversity.every=4")
    told = cli(*tiny_arguments(name, *tiny))
    assert told.code == 0, told.err
    manifest = validate_set(moedd_home / "sets" / name)
    assert [entry.method for entry in manifest.experts] == ["meanmatch", "idm"]
    assert manifest.experts[0].trained_in.space == "normalized"
    assert manifest.provenance.iterations == {"0.meanmatch": 8, "1.idm": 4}
    assert expert_class("meanmatch").__module__ == module


def test_the_expert_of_the_page_brings_its_loss_down_and_resumes(site: Path) -> None:
    from enginefactories import digits, make_expert, make_pool

    (source,), (project,) = blocks("python"), blocks("toml")
    install(site, source, project)
    real = digits(2, 30)
    pool = make_pool(real, 1)
    one, other = (make_expert("meanmatch", real, pool=pool, ipc=2) for _ in range(2))
    losses = [one.step()["match"] for _ in range(15)]
    assert losses[-1] < 0.5 * losses[0]
    for _ in range(7):
        other.step()
    resumed = make_expert("meanmatch", real, pool=pool, ipc=2)
    resumed.load_state_dict({n: t.clone() for n, t in other.state_dict().items()})
    assert [resumed.step()["match"] for _ in range(8)] == losses[7:]
    assert torch.equal(resumed.images, one.images)


BROKEN = """
[project]
name = "broken-expert"
version = "1"
[project.entry-points."moedd.experts"]
broken = "broken_expert:Thing"
"""


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("import no_such_module_at_all\n", "No module named 'no_such_module_at_all'"),
        ("Other = 1\n", "Thing"),
        ("Thing = 3\n", "is 3, expected a subclass of moedd.experts.Expert"),
    ],
)
def test_a_package_that_cannot_be_used_is_told_in_one_sentence(
    source: str, said: str, site: Path, moedd_home: Path
) -> None:
    install(site, source, BROKEN)
    with pytest.raises(UsageError, match="method 'broken' of broken_expert:Thing"):
        expert_class("broken")
    told = cli("distill", "digits-broken-1x1")
    assert told.code == 2
    assert said in told.sentence
