"""docs/diversity.md names every setting of the diversity step with its default."""

import json
import re
from pathlib import Path
from typing import get_args

from moedd.diversity import DiversityConfig

TEXT = (Path(__file__).parents[2] / "docs" / "diversity.md").read_text()


def test_the_table_holds_every_setting_with_its_default() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| `?([\w.]+)`? \|", TEXT, re.MULTILINE))
    plain = DiversityConfig().model_dump(mode="json")
    assert rows == {key: v if isinstance(v, str) else json.dumps(v) for key, v in plain.items()} | {
        "weight": "1"
    }


def test_every_choice_is_explained() -> None:
    for key in ("within", "estimator", "layer", "pairs"):
        for choice in get_args(DiversityConfig.model_fields[key].annotation):
            assert f"`{choice}`" in TEXT, choice
