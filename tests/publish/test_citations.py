"""Entries to cite, read by a BibTeX parser."""

from __future__ import annotations

from pybtex.database import parse_string

from moedd.experts import method_names
from moedd_publish.citations import MIXTURE, bibtex, work_of


def test_every_entry_is_read_by_a_parser() -> None:
    methods = method_names()
    found = parse_string(bibtex(methods, mixture=True), "bibtex").entries
    works = {work.key: work for method in methods if (work := work_of(method))}
    assert set(found) == {MIXTURE.key, *works}
    for key, work in works.items():
        entry = found[key]
        assert (entry.type, entry.fields["booktitle"]) == ("inproceedings", work.venue)
        assert entry.fields["title"] == work.title
        assert entry.fields["year"] == str(work.year)
        assert len(entry.persons["author"]) == work.authors.count(" and ") + 1
        assert all(person.last_names for person in entry.persons["author"])


def test_a_work_without_names_invents_none() -> None:
    entry = parse_string(bibtex([], mixture=True), "bibtex").entries[MIXTURE.key]
    (author,) = entry.persons["author"]
    assert author.last_names == ["{Authors as in the published version}"]
    assert author.first_names == []
    assert (entry.type, entry.fields["howpublished"]) == ("misc", MIXTURE.venue)
    assert (entry.fields["title"], entry.fields["year"]) == (MIXTURE.title, "2025")
