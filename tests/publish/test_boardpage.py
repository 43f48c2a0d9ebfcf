"""The leaderboard as a page: in a browser, from a file and as a Space."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boardfactories
import pytest
from hub_server import HubServer
from hub_store import File
from hubfactories import log_in
from runfactories import cli

from moedd_loaders.errors import AuthError, ConflictError
from moedd_publish.boardpage import boards_page
from moedd_publish.hubspace import push_space
from moedd_publish.leaderboard import boards, gather_local


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shelf")
    boardfactories.make_shelf(folder)
    return folder


@pytest.fixture(scope="module")
def page_file(shelf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "board.html"
    told = cli("leaderboard", "--local", shelf, "--html", path, "--title", "Toys & others")
    assert told.code == 0, told.err
    return path


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        pytest.skip("Chromium is not installed (Debian: apt-get install chromium)")
    with sync_playwright() as playwright:
        # In a container the browser's own sandbox cannot be set up.
        found = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def opened(browser: Any, page_file: Path) -> Iterator[Any]:
    """The page from its file; whatever it complains about, or asks for, fails the test."""
    page = browser.new_page()
    asked: list[str] = []
    complaints: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(page_file.as_uri())
    yield page
    assert complaints == []
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    page.close()


def column(page: Any, number: int) -> list[str]:
    cells = page.locator("table.board").first.locator(f"tbody tr td:nth-child({number})")
    return [text.strip() for text in cells.all_inner_texts()]


def test_tables_sort_by_every_column(opened: Any) -> None:
    assert opened.title() == "Toys & others"
    heads = opened.locator("table.board").first.locator("th button")
    names = heads.all_inner_texts()
    assert names[:6] == ["set", "fuse", "method", "images per class", "convnet3", "vgg11"]
    number = names.index("convnet3")
    for descending in (True, False):
        heads.nth(number).click()
        shown = [float(text.split()[0]) for text in column(opened, number + 1) if text]
        assert len(shown) == 7
        assert shown == sorted(shown, reverse=descending)
    heads.nth(0).click()
    assert column(opened, 1) == sorted(column(opened, 1), key=str.lower)
    heads.nth(names.index("vgg11")).click()
    values = column(opened, names.index("vgg11") + 1)
    assert values == ["60.0 ± 2.0", "50.0 ± 2.0", "", "", "", "", ""]
    sort = opened.locator("th[aria-sort]")
    assert sort.count() == 1
    assert sort.get_attribute("aria-sort") == "descending"


def test_plots_and_pictures_are_seen(opened: Any) -> None:
    plots = opened.locator("figure svg")
    assert plots.count() == 4
    for index in range(4):
        box = plots.nth(index).bounding_box()
        assert box["width"] > 300
        assert box["height"] > 150
    said = plots.first.text_content()
    for word in ("accuracy %", "images per class", "vgg11", "random real images"):
        assert word in said
    widths = opened.eval_on_selector_all(".card img", "images => images.map(i => i.naturalWidth)")
    assert len(widths) == 3
    assert min(widths) > 100


def test_filters(opened: Any) -> None:
    count = opened.locator("#count")
    assert count.inner_text() == "3 of 3 sets"
    opened.select_option("#data", "others")
    assert count.inner_text() == "1 of 3 sets"
    assert opened.locator("section:visible").count() == 1
    opened.select_option("#data", "toy")
    real = opened.locator("table.board").first.get_by_text("all real images")
    assert real.is_visible()
    opened.select_option("#data", "")
    opened.select_option("#budget", "2")
    assert count.inner_text() == "1 of 3 sets"
    names = opened.locator("table.board").first.locator("tbody tr:visible td:first-child")
    assert set(names.all_inner_texts()) == {
        "toy-small", "random real images, budget of toy-small", "all real images",
    }  # fmt: skip
    opened.select_option("#budget", "")
    opened.fill("#text", "LARGE")
    assert count.inner_text() == "1 of 3 sets"


def test_strange_names_stay_text(opened: Any) -> None:
    assert opened.evaluate("window.hacked") is None
    assert boardfactories.ODD in opened.locator("th button").all_inner_texts()


def test_the_page_is_the_same_for_the_same_sets(shelf: Path) -> None:
    entries = gather_local(shelf)
    page = boards_page(boards(entries, data="others"), entries)
    assert page == boards_page(boards(entries, data="others"), entries)
    assert "default-src 'none'" in page
    nothing = boards_page([], [])
    assert "No benchmark records yet" in nothing


def test_a_picture_that_is_none_is_left_out(shelf: Path) -> None:
    entries = gather_local(shelf)
    for entry in entries:
        object.__setattr__(entry, "preview", b"<svg onload=alert(1)>")
    page = boards_page([], entries)
    assert "<img alt" not in page
    assert "onload" not in page


def test_as_a_space(
    browser: Any, shelf: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = ("leaderboard", "--local", shelf, "--data", "others", "--push-space", "someone/board")
    told = cli(*others)
    assert told.code == 0, told.err
    repo = hub.store.repos["spaces", "someone/board"]
    assert (repo.sdk, repo.card()["sdk"]) == ("static", "static")
    assert len(repo.history()) == 2
    again = cli(*others)
    assert "published already, nothing was changed" in again.err
    assert len(repo.history()) == 2
    page = browser.new_page()
    page.goto(f"{hub.url}/space/someone/board")
    assert page.locator("table.board").count() == 1
    page.close()
    # The answer that is lost, a head that moved, somebody else's Space, no right to write.
    hub.faults.add("commit", "lost")
    made = push_space("someone/board", "<p>other</p>", say=lambda _: None)
    assert (made.changed, len(repo.history())) == (True, 3)
    space = {"name": "taken", "type": "space", "sdk": "static"}
    taken = hub.store.create(hub.store.accounts["hf_writer"], space)
    head = taken.resolve("main")
    files = {"index.html": File(b"theirs"), "README.md": File(b"---\nsdk: static\n---\n")}
    taken.branches["main"] = taken.add("theirs", files, head).oid
    with pytest.raises(ConflictError, match="other content"):
        push_space("someone/taken", "<p></p>", say=lambda _: None)
    log_in(monkeypatch, "hf_reader")
    with pytest.raises(AuthError):
        push_space("someone/new", "<p></p>", say=lambda _: None)


BOARD = (
    "---\ntitle: b\nsdk: static\n---\n# b\n\nA leaderboard made by moedd (`moedd leaderboard`).\n"
)


@pytest.mark.parametrize(
    ("sdk", "readme", "others", "fine"),
    [
        ("gradio", "---\nsdk: gradio\n---\n", {"app.py": b"theirs"}, False),
        ("docker", "---\nsdk: docker\n---\n", {"Dockerfile": b"theirs"}, False),
        ("gradio", BOARD, {"app.py": b"theirs"}, False),
        ("static", "---\nsdk: static\n---\n", {"index.html": b"theirs"}, False),
        ("static", "---\nsdk: static\n---\n", {"main.js": b"theirs"}, False),
        ("static", "", {"main.js": b"theirs"}, False),
        ("static", BOARD, {"index.html": b"an older one"}, True),
        ("static", BOARD, {"index.html": b"an older one", "notes.txt": b"theirs"}, True),
    ],
)
def test_only_boards_are_replaced(
    sdk: str, readme: str, others: dict[str, bytes], fine: bool, shelf: Path, hub: HubServer
) -> None:
    who = hub.store.accounts["hf_writer"]
    space = hub.store.create(who, {"name": "taken", "type": "space", "sdk": sdk})
    head = space.resolve("main")
    files = {name: File(data) for name, data in others.items()}
    if readme:
        files["README.md"] = File(readme.encode())
    made = space.add("theirs", files, head)
    space.branches["main"] = made.oid
    told = cli("leaderboard", "--local", shelf, "--data", "others", "--push-space", "someone/taken")
    assert told.code == (0 if fine else 4), told.err
    if fine:
        kept = {
            name: file for name, file in files.items() if name not in ("index.html", "README.md")
        }
        assert kept.items() <= space.resolve("main").files.items()
    else:
        assert space.branches["main"] == made.oid
        assert "give another name to --push-space" in told.sentence


def test_a_space_as_the_hub_made_it_is_filled(hub: HubServer) -> None:
    """With files that nobody wrote, in its only commit."""
    space = {"name": "new", "type": "space", "sdk": "static"}
    made = hub.store.create(hub.store.accounts["hf_writer"], space)
    first = made.resolve("main")
    files = {"index.html": File(b"welcome"), "README.md": File(b"---\nsdk: static\n---\n")}
    made.branches["main"] = made.add("initial commit", files, None).oid
    del made.commits[first.oid]
    assert push_space("someone/new", "<p></p>", say=lambda _: None).changed
