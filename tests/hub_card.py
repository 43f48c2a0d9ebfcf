"""What the Hub demands of a card's YAML (the rules that cards of data sets can break)."""

from __future__ import annotations

import re
from typing import Any

import yaml

_LICENSE_WORDS = """
apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0
afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0
cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0
cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0
cc-by-nc-sa-4.0 ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0
gpl-3.0 lgpl lgpl-2.1 lgpl-3.0 isc lppl-1.3c ms-pl apple-ascl mpl-2.0 odc-by odbl openrail++
osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl lgpl-lr deepfloyd-if-license llama2 llama3
llama3.1 llama3.2 llama3.3 gemma unknown other
"""
_SIZE_WORDS = "n<1K 1K<n<10K 10K<n<100K 100K<n<1M 1M<n<10M 10M<n<100M 100M<n<1B n>1T"
_TASK_WORDS = """
image-classification image-segmentation object-detection text-classification other
text-generation image-to-image unconditional-image-generation
"""
_COLOR_WORDS = "red yellow green blue indigo purple pink gray"
_LICENSES, _SIZES, _TASKS, _COLORS = (
    frozenset(words.split()) for words in (_LICENSE_WORDS, _SIZE_WORDS, _TASK_WORDS, _COLOR_WORDS)
)


def front_matter(readme: str) -> dict[str, Any] | None:
    """The YAML block of a README, {} if there is none, None if it is no mapping."""
    match = re.match(r"---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(\r?\n|$)", readme, re.DOTALL)
    if match is None:
        return {}
    found = yaml.safe_load(match[1])
    return found if isinstance(found, dict) else None


def card_problems(readme: str, kind: str) -> list[str]:
    """Why the Hub would refuse this README, in sentences; empty if it would not."""
    try:
        card = front_matter(readme)
    except yaml.YAMLError as error:
        return [f"Invalid YAML: {error}".replace("\n", " ")]
    if card is None:
        return ["The metadata must be a mapping"]
    found = [problem for problem in _common(card) if problem]
    if kind == "datasets":
        found += _configs(card.get("configs", []))
    if kind == "spaces":
        if card.get("sdk") not in ("static", "gradio", "docker"):
            found.append('"sdk" must be one of [static, gradio, docker]')
        for key in ("colorFrom", "colorTo"):
            if key in card and card[key] not in _COLORS:
                found.append(f'"{key}" must be one of {sorted(_COLORS)}')
    return found


def _common(card: dict[str, Any]) -> list[str]:
    found = []
    licenses = card.get("license", "mit")
    for value in licenses if isinstance(licenses, list) else [licenses]:
        if value not in _LICENSES:
            found.append(f'"license" must be one of the known licences, not {value!r}')
    if card.get("license") == "other" and not str(card.get("license_name") or "").strip():
        found.append('"license_name" is required with "license: other"')
    name = card.get("license_name")
    if name is not None and not re.fullmatch(r"[a-z0-9-.]+", str(name)):
        found.append(f'"license_name" must match [a-z0-9-.]+, not {name!r}')
    link = card.get("license_link")
    if link is not None and not re.fullmatch(r"LICENSE(\.md)?|https?://\S+", str(link)):
        found.append(f'"license_link" must be LICENSE, LICENSE.md or a link, not {link!r}')
    for key, known in (("size_categories", _SIZES), ("task_categories", _TASKS), ("tags", None)):
        values = card.get(key, [])
        values = [values] if isinstance(values, str) else values
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            found.append(f'"{key}" must be a list of strings')
        elif known is not None and not set(values) <= known:
            found.append(f'"{key}" has unknown values {sorted(set(values) - known)}')
    for source in card.get("source_datasets", []):
        if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", str(source)):
            found.append(f'"source_datasets" has {source!r}, which is no id')
    return found


def _configs(configs: Any) -> list[str]:
    if not isinstance(configs, list):
        return ['"configs" must be an array']
    found = []
    names = []
    for config in configs:
        if not isinstance(config, dict) or not isinstance(config.get("config_name"), str):
            return ['each of "configs" needs a "config_name"']
        names.append(config["config_name"])
        for split in config.get("data_files", []):
            if not isinstance(split, dict) or not re.fullmatch(
                r"\w+(\.\w+)*", str(split.get("split"))
            ):
                found.append(f'"data_files" of {names[-1]} has the split {split!r}')
    if len(set(names)) < len(names):
        found.append(f'"configs" has a name twice: {names}')
    if sum(bool(config.get("default")) for config in configs) > 1:
        found.append('"configs" has more than one default')
    return found
