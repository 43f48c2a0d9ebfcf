from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any

import factories
import hubfactories
import torch
import yaml
from hub_card import card_problems

from moedd.experts import expert_class, method_names
from moedd_loaders.decode import decode
from moedd_loaders.manifest import Manifest, NoDecode, Shuffled, TilesDecode
from moedd_publish.card import render_card
from moedd_publish.citations import MIXTURE, work_of


def parts(card: str) -> tuple[dict[str, Any], str, list[str]]:
    _, front, body = card.split("---\n", 2)
    snippets = re.findall(r"```python\n(.*?)```", body, re.S)
    return yaml.safe_load(front), body, snippets


def change(manifest: Manifest, **fields: Any) -> Manifest:
    source = manifest.source.model_copy(update=fields)
    return manifest.model_copy(update={"source": source})


def test_metadata(tmp_path: Path) -> None:
    manifest = factories.make_set(tmp_path / "s", rows_per_shard=4)
    front, _, _ = parts((tmp_path / "s" / "README.md").read_text())
    assert front["license"] == "mit"
    assert front["size_categories"] == ["n<1K"]
    assert front["source_datasets"] == ["someone/toy"]
    assert "dataset_info" not in front
    default, by_expert = front["configs"]
    assert default["default"] is True
    paths = [p for split in by_expert["data_files"] for p in split["path"]]
    assert [split["split"] for split in by_expert["data_files"]] == ["expert_0", "expert_1"]
    assert paths == sorted(name for name in manifest.files if name.endswith(".parquet"))
    named = parts(render_card(change(manifest, license="CIFAR terms", hub_id=None)))[0]
    assert (named["license"], named["license_name"]) == ("other", "cifar-terms")
    linked = parts(render_card(change(manifest, license="https://a.org/terms")))[0]
    assert (linked["license_name"], linked["license_link"]) == ("see-link", "https://a.org/terms")
    for metadata in (front, named, linked):
        assert card_problems(f"---\n{yaml.safe_dump(metadata)}---\n", "datasets") == []
    assert "source_datasets" not in named


def test_tiles_are_warned_about_at_the_top(tmp_path: Path) -> None:
    factories.make_set(tmp_path / "s")
    _, body, _ = parts((tmp_path / "s" / "README.md").read_text())
    assert body.index("The images are tiles") < body.index("## ")
    assert "Expert 0 stores several small images" in body
    factories.make_set(tmp_path / "all", rules=(factories.ROW_TILES,) * 2)
    assert "All experts store several" in (tmp_path / "all" / "README.md").read_text()
    factories.make_set(tmp_path / "plain", rules=(NoDecode(),))
    assert "tiles" not in (tmp_path / "plain" / "README.md").read_text()


def test_the_snippets_run_and_read_the_set(tmp_path: Path) -> None:
    folder = tmp_path / "toy-idm-2x2"
    manifest = factories.make_set(folder, shape=(3, 7, 10), rows_per_shard=5)
    body = (folder / "README.md").read_text().replace("path/to/toy-idm-2x2", str(folder))
    _, _, snippets = parts(body)
    assert len(snippets) == 5
    _, with_datasets, with_webdataset, with_safetensors, with_decode = snippets
    space: dict[str, Any] = {}
    # The default cache is for users; a test must not fill it.
    exec(with_datasets.replace('", split', f'", cache_dir={str(tmp_path)!r}, split'), space)
    for snippet in (with_webdataset, with_safetensors, with_decode):
        exec(snippet, space)
    assert len(space["rows"]) == manifest.budget.images == len(list(space["samples"]))
    images = space["tensors"]["images"]
    for order in ("row-major", "column-major"):
        mine = space["decode"](images, 3, order == "column-major", space["mean"])
        ours = decode(images, TilesDecode(factor=3, order=order), manifest.source.mean)
        torch.testing.assert_close(mine, ours)


def test_the_three_lines_fit_the_set(tmp_path: Path) -> None:
    factories.make_set(tmp_path / "two")
    factories.make_set(tmp_path / "one", rules=(NoDecode(),))
    assert 'load_distilled("path/to/two", fuse="mixup")' in (tmp_path / "two/README.md").read_text()
    assert 'load_distilled("path/to/one")' in (tmp_path / "one" / "README.md").read_text()


def test_source_and_counts_are_told(tmp_path: Path) -> None:
    source_rows = factories.make_rows(factories.make_source(), [1, 2, 3], factories.ROW_TILES)
    factories.make_set(tmp_path / "s", experts=[source_rows])
    body = (tmp_path / "s" / "README.md").read_text()
    assert "| 0 | idm | 1 to 3 | 4 to 12 | 2 x 2 tiles, row-major | unit |" in body
    assert "Licence of the source: **mit**" in body
    assert "6 images of (3, 8, 8)" in body
    assert "$" not in body


def test_diversity_is_told_with_its_baseline_where_there_is_one(tmp_path: Path) -> None:
    manifest = factories.make_set(tmp_path / "s")
    plain = render_card(manifest)
    assert "0.100 unbiased (0.800 biased" in plain
    assert "paired at random" not in plain
    assert manifest.diversity is not None
    shuffled = Shuffled(
        biased=0.7, biased_std=0.01, unbiased=0.002, unbiased_std=0.031, cka=0.2, cka_std=0.1,
        orders=64,
    )  # fmt: skip
    diversity = manifest.diversity.model_copy(update={"shuffled": shuffled})
    told = render_card(manifest.model_copy(update={"diversity": diversity}))
    assert "paired at random (64 times) the unbiased value is 0.002 ± 0.031." in told


def test_what_was_done_to_the_data_is_told(tmp_path: Path) -> None:
    manifest = factories.make_set(tmp_path / "s")
    told = render_card(change(manifest, notes=["first note", "re-encoded as JPEG"]))
    assert "* first note\n* re-encoded as JPEG\n" in told


def test_results_stand_beside_random_and_all_real_images(tmp_path: Path) -> None:
    manifest = factories.make_set(tmp_path / "s")
    # Per row two networks, 2 points apart: the mean is half way, the deviation is sqrt(2).
    body = render_card(manifest, records=hubfactories.make_records(manifest))
    for row in (
        "| convnet3 | common-300 | distilled, no fusion | 30 | 41.0 ± 1.4 | 2 |",
        "| convnet3 | common-300 | distilled, fuse=mixup | 30 | 51.0 ± 1.4 | 2 |",
        "| convnet3 | common-300 | random real images | 30 | 61.0 ± 1.4 | 2 |",
        "| convnet3 | common-300 | all real images | 30 | 71.0 ± 1.4 | 2 |",
    ):
        assert row in body
    assert "guessing gives 33.3 %" in body
    assert "still missing" not in body
    claim = body[body.index("# s") : body.index("## ")]
    assert "**convnet3 trained on them with fuse=mixup reaches 51.0 ± 1.4 % accuracy**" in claim
    assert "61.0 ± 1.4 % on the same number of random real images" in claim
    assert "71.0 ± 1.4 % on all real images" in claim
    assert claim.count("![preview]") == 1


def test_rows_of_different_recipes_stay_apart(tmp_path: Path) -> None:
    manifest = factories.make_set(tmp_path / "s")
    records = [
        hubfactories.make_record(manifest, accuracy=0.5),
        hubfactories.make_record(manifest, accuracy=0.9, protocol="idc", epochs=1000),
        hubfactories.make_record(manifest, accuracy=0.7, data_fingerprint="sha256:11"),
        hubfactories.make_record(manifest, accuracy=0.6, config={"width": 64}),
    ]
    body = render_card(manifest, records=records)
    rows = [
        line
        for line in body.splitlines()
        if line.startswith("| convnet3") and "not measured" not in line
    ]
    assert [row.split(" | ")[4] for row in rows] == ["50.0", "60.0", "70.0", "90.0"]
    assert "convnet3 (width 64)" in rows[1]
    assert "idc, 1000 epochs" in rows[3]
    assert "different real data" in body
    assert "`--random` and `--full` adds them" in body


def test_fusion_that_was_not_measured_is_told(tmp_path: Path) -> None:
    manifest = factories.make_set(tmp_path / "s")
    record = functools.partial(hubfactories.make_record, manifest)
    records = [
        record(fuse="none"),
        record(fuse="mixup", network="vgg11"),
        record(fuse="none", network="resnet18"),
        record(fuse="cutmix", network="resnet18"),
        record(variant="random", network="alexnet"),
    ]
    body = render_card(manifest, records=records)
    rows = [line for line in body.splitlines() if "not measured" in line]
    assert rows == [
        "| alexnet | common-300 | distilled, no fusion | | not measured | 0 |",
        "| alexnet | common-300 | distilled, with fusion | | not measured | 0 |",
        "| convnet3 | common-300 | distilled, with fusion | | not measured | 0 |",
        "| vgg11 | common-300 | distilled, no fusion | | not measured | 0 |",
    ]
    assert body.index("distilled, no fusion | 30") < body.index(
        "convnet3 | common-300 | distilled, w"
    )
    # One expert has nothing to be fused with.
    single = factories.make_set(tmp_path / "one", rules=(NoDecode(),))
    alone = hubfactories.make_record(single, fuse="none")
    assert "not measured" not in render_card(single, records=[alone])


def test_without_records_no_number_is_claimed(tmp_path: Path) -> None:
    manifest = factories.make_set(tmp_path / "s")
    body = render_card(manifest)
    assert "Nobody has published a benchmark" in body
    assert "%" not in body[body.index("# s") : body.index("## Load")]
    assert "None published yet" in body


def test_everything_that_a_reader_must_know_is_said(tmp_path: Path) -> None:
    manifest = factories.make_set(tmp_path / "s")
    made = manifest.provenance.model_copy(
        update={"iterations": {"0.idm": 400}, "schedule_fraction": {"0.idm": 0.02}}
    )
    body = render_card(
        manifest.model_copy(update={"provenance": made}), repo_id="ns/s", tag="v1.0.0"
    )
    for said in (
        "unit space: 0 is black",
        "mean [0.4, 0.45, 0.5] and standard deviation [0.2, 0.21, 0.22]",
        "9,216 bytes of float32\n  pixels and 96 bytes of labels",
        "cut into factor x factor parts",
        "400 matching steps, 2 % of the method's own schedule",
        "made with 2 % of the methods' own steps",
        "seed 0",
        "Licence of the source: **mit**",
        '`load_distilled("ns/s@v1.0.0")`',
        MIXTURE.link,
        "https://arxiv.org/abs/2307.09742",
        "@inproceedings{idm,",
    ):
        assert said in body, said
    assert "path/to" not in body


def test_every_method_of_ours_is_cited(tmp_path: Path) -> None:
    for method in method_names():
        work, said = work_of(method), expert_class(method).source
        if work is None:
            assert method == "random"
            continue
        assert str(work.year) in said
        arxiv = re.search(r"arXiv (\d{4}\.\d{5})", said)
        assert arxiv is None or work.link.endswith(arxiv[1])
    rows = factories.make_rows(factories.make_source(), [1, 1, 1], method="mine")
    factories.make_set(tmp_path / "s", experts=[rows])
    body = (tmp_path / "s" / "README.md").read_text()
    assert "`mine`: see the package that the method comes from" in body
    assert MIXTURE.link not in body
