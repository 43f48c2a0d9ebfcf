"""What people write into a card survives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import factories
import hubfactories
import pytest
import yaml
from hub_server import HubServer
from hub_store import File
from hubfactories import the_repo
from hypothesis import given
from hypothesis import strategies as st

from moedd_loaders.errors import ConflictError
from moedd_publish.card import OWNED_KEYS, render_card
from moedd_publish.cardmerge import merge_cards, split_card
from moedd_publish.hub import PushOptions, push_to_hub

MADE = "---\nlicense: mit\ntags:\n- moedd\n---\n<!-- moedd:begin -->\n# new\n<!-- moedd:end -->\n"
OLD = MADE.replace("# new", "# old")


def merge(here: str | None, there: str | None) -> str:
    return merge_cards(MADE, here, there, OWNED_KEYS, "ns/name")


def edit(card: str, text: str) -> str:
    return card + f"\n{text}\n"


def test_only_our_part_is_replaced() -> None:
    there = (
        "---\nlicense: other\nlanguage: en\ntags:\n- mine\n---\nBefore.\n" + OLD[OLD.index("<") :]
    )
    merged = merge(None, edit(there, "After."))
    front, before, block, after, _ = split_card(merged)
    assert front == {"license": "mit", "tags": ["moedd", "mine"], "language": "en"}
    assert before == "Before.\n"
    assert "# new" in block
    assert "# old" not in merged
    assert after.strip() == "After."


def test_a_card_without_our_part_gets_it_on_top() -> None:
    merged = merge(None, "# By hand\n\nWords.\n")
    assert merged.index("# new") < merged.index("# By hand")
    assert merge(None, None) == merge(MADE, None)
    broken = merge(None, "---\n: [\n---\nWords.\n")
    assert "Words." in broken


def test_whoever_edited_last_wins() -> None:
    pushed = merge(edit(MADE, "First."), None)
    assert "First." in pushed
    # Here only, there only, neither.
    assert "Second." in merge(edit(MADE, "Second."), pushed)
    there = edit(pushed, "On the website.")
    assert "On the website." in merge(edit(MADE, "First."), there)
    assert merge(edit(MADE, "First."), pushed) == pushed
    # Nothing here does not mean that nothing shall be there.
    assert "First." in merge(MADE, pushed)
    assert "First." in merge(None, pushed)


def test_both_edited_is_a_conflict() -> None:
    pushed = merge(edit(MADE, "First."), None)
    with pytest.raises(ConflictError, match=r"both here and in ns/name.*--replace-card"):
        merge(edit(MADE, "Here."), edit(pushed, "There."))


words = st.text(st.characters(blacklist_categories=["Cs", "Cc"]), max_size=60).filter(
    lambda text: "<!--" not in text and not text.startswith("---")
)


@given(before=words, after=words, keys=st.dictionaries(st.sampled_from("abc"), st.text("xy")))
def test_any_text_survives_any_number_of_pushes(
    before: str, after: str, keys: dict[str, Any]
) -> None:
    block = OLD[OLD.index("<") :]
    there = f"---\n{yaml.safe_dump({'license': 'x', **keys})}---\n{before}\n{block}{after}"
    once = merge(None, there)
    front, kept_before, _, kept_after, _ = split_card(once)
    assert (kept_before, kept_after) == (f"{before}\n", after)
    assert {key: front[key] for key in keys} == keys
    assert merge(None, once) == once
    assert merge(MADE, once) == once


def test_on_the_hub(tmp_path: Path, hub: HubServer) -> None:
    folder = tmp_path / "toy"
    manifest = factories.make_set(folder)

    def push(**options: Any) -> bool:
        made = push_to_hub(folder, "someone/toy", PushOptions(**options), say=lambda _: None)
        return made.changed

    push()
    repo = the_repo(hub)

    def write(extra: str) -> None:
        head = repo.resolve("main")
        readme = head.files["README.md"].data.decode().replace("\ntags:", "\nlanguage: en\ntags:")
        files = {**head.files, "README.md": File((readme + extra).encode())}
        repo.branches["main"] = repo.add("by hand", files, head).oid

    def card() -> str:
        return repo.resolve("main").files["README.md"].data.decode()

    write("\n## From me\n\nThanks to everybody.\n")
    results = tmp_path / "r.jsonl"
    results.write_text(hubfactories.make_record(manifest).model_dump_json() + "\n")
    assert push(results=results)
    assert "Thanks to everybody." in card()
    assert "language: en" in card()
    assert "50.0" in card()
    assert not push()
    (folder / "README.md").write_text(render_card(manifest) + "\nAnother text.\n")
    write("More.\n")
    with pytest.raises(ConflictError, match="--replace-card"):
        push()
    assert push(replace_card=True)
    assert "Another text." in card()
    assert "Thanks" not in card()
