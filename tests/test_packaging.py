"""The distribution: sdist and wheel build, and the wheel works in an environment of its own."""

import os
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("moedd", "moedd_publish", "moedd_loaders")

IMPORT_ALL = """
import importlib, pkgutil, sys
for package in {packages!r}:
    root = importlib.import_module(package)
    assert root.__file__.startswith({site!r}), root.__file__
    for module in pkgutil.walk_packages(root.__path__, package + "."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
            print(module.name)
from moedd import load_distilled
from moedd_loaders.resolve import bundled_names
for name in bundled_names():
    ds = load_distilled(name, fuse="mixup")
    images, labels = next(iter(ds.batches(16)))
    assert images.shape[0] == labels.shape[0] == 16
    print("loaded", name, ds.origin)
"""


def run(*command: str, cwd: Path, **environment: str) -> str:
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | environment
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """sdist and wheel, built from a copy of the tracked tree (the wheel from the sdist)."""
    place = tmp_path_factory.mktemp("built")
    tree = place / "tree"
    listed = run("git", "ls-files", "-co", "--exclude-standard", cwd=ROOT).splitlines()
    for name in listed:
        if (ROOT / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            (tree / name).write_bytes((ROOT / name).read_bytes())
    run(
        sys.executable, "-m", "build", "--no-isolation", "--outdir", str(place / "dist"), str(tree),
        cwd=place,
    )  # fmt: skip
    return place / "dist"


def test_sdist_and_wheel_hold_the_packages_and_nothing_else(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == set(PACKAGES)
    assert {f"{package}/py.typed" for package in PACKAGES} <= set(names)
    assert any(name.startswith("moedd_publish/templates/") for name in names)
    for name in ("digits-idm-5x2", "cifar10-idc-5x2", "cifar10-idm-5x2"):
        assert f"moedd_loaders/bundled/{name}/moedd.json" in names
        assert f"moedd_loaders/bundled/{name}/tensors/distilled.safetensors" in names
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        inside = {name.split("/", 1)[-1] for name in archive.getnames()}
    assert {"pyproject.toml", "README.md", "LICENSE"} <= inside


def test_the_wheel_works_in_a_clean_environment(built: Path, tmp_path: Path) -> None:
    """Every module imports and every bundled set loads; dependencies are borrowed from here.

    A path in a .pth file adds the packages of this environment but not its editable installs, so
    the moedd that is imported is the wheel's.
    """
    (wheel,) = built.glob("*.whl")
    run(sys.executable, "-m", "venv", str(tmp_path / "env"), cwd=tmp_path)
    python = str(tmp_path / "env/bin/python")
    run(python, "-m", "pip", "install", "-q", "--no-deps", "--no-index", str(wheel), cwd=tmp_path)
    (site,) = (tmp_path / "env/lib").glob("python*/site-packages")
    borrowed = sysconfig.get_paths()
    lines = {borrowed["purelib"], borrowed["platlib"]}
    (site / "borrowed.pth").write_text("\n".join(sorted(lines)) + "\n")
    code = IMPORT_ALL.format(packages=PACKAGES, site=str(site))
    out = run(
        python, "-c", code, cwd=tmp_path, MOEDD_HOME=str(tmp_path / "home"), HF_HUB_OFFLINE="1"
    )
    assert "moedd_publish.write" in out
    assert "moedd.experts.idc" in out
    assert "loaded cifar10-idc-5x2 bundled" in out
    script = run(str(tmp_path / "env/bin/moedd"), "--help", cwd=tmp_path)
    assert "distill" in script
