"""Writes a distilled set (Parquet, WebDataset, tensors), its card and its preview picture."""

from moedd_publish.preview import preview_grid
from moedd_publish.write import ExpertRows, check_target, write_set

__all__ = ["ExpertRows", "check_target", "preview_grid", "write_set"]
