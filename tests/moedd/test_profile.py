"""The device profile: what is probed, what is asked for, and when compiling pays."""

from __future__ import annotations

import json
import os
import platform

import pytest
import torch

from moedd import profile as module
from moedd.profile import PROFILES, Profile, bfloat16_units, choose_profile, keep_large_buffers
from moedd_loaders.errors import UsageError


def test_every_profile_can_be_had_here() -> None:
    for name in PROFILES:
        made = choose_profile(name, "cpu")
        assert made.device == "cpu"
        assert made.threads == torch.get_num_threads()
        assert made.name == (module.AUTO if name == "auto" else name)
        assert json.loads(json.dumps(made.describe()))["precision"] == made.precision
    assert choose_profile("float32", "cpu").precision == "float32"


def test_unknown_ones_are_refused() -> None:
    with pytest.raises(UsageError, match=r"profile 'quick'.*auto, fast, float32"):
        choose_profile("quick")
    with pytest.raises(UsageError, match="device 'tpu'"):
        choose_profile("float32", "tpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="hardware: this machine has CUDA")
def test_cuda_where_there_is_none_is_refused() -> None:
    with pytest.raises(UsageError, match="no CUDA device"):
        choose_profile("float32", "cuda")


@pytest.mark.parametrize(
    ("flags", "units", "precision"),
    [
        ("fpu avx2 avx512f avx512_bf16 amx_bf16 amx_tile", "amx", "bfloat16"),
        ("fpu avx2 avx512f avx512_bf16", "avx512_bf16", "bfloat16"),
        ("fpu avx2", "none", "float32"),
    ],
)
def test_bfloat16_is_used_where_the_processor_has_units(
    flags: str, units: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(path: str, **options: str) -> list[str]:
        from contextlib import nullcontext

        return nullcontext([f"flags\t\t: {flags}\n"])  # type: ignore[return-value]

    monkeypatch.setattr(module, "open", read, raising=False)
    monkeypatch.setattr(module, "processor_name", lambda: "test")
    assert bfloat16_units() == units
    assert choose_profile("fast", "cpu").precision == precision
    assert choose_profile("float32", "cpu").precision == "float32"


def test_no_compiler_is_one_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.warns(UserWarning, match="no C\\+\\+ compiler") as caught:
        made = choose_profile("float32", "cpu")
    assert len(caught) == 1
    assert made.compiled is False
    assert made.for_work(1e30).compiled is False


def test_compiled_code_is_kept_under_the_home(
    monkeypatch: pytest.MonkeyPatch, tmp_path: os.PathLike[str]
) -> None:
    monkeypatch.setenv("MOEDD_HOME", str(tmp_path))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "mine")
    monkeypatch.setattr(module.shutil, "which", lambda name: f"/usr/bin/{name}")
    choose_profile("float32", "cpu")
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "mine"  # what a user set is left alone
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    choose_profile("float32", "cpu")
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "compiled")  # type: ignore[operator]


def test_compiling_is_for_long_work_only() -> None:
    undecided = Profile(compiled=None)
    assert undecided.for_work(1e12).compiled is False
    assert undecided.for_work(1e15).compiled is True
    # Half precision gains more, so it pays sooner.
    assert Profile(compiled=None, precision="bfloat16").for_work(2e13).compiled is True
    assert undecided.for_work(2e13).compiled is False
    for settled in (True, False):
        assert Profile(compiled=settled).for_work(1e13).compiled is settled


def test_it_says_what_it_is() -> None:
    assert str(Profile("fast", threads=2, precision="bfloat16", compiled=None)) == (
        "profile fast (bfloat16, compiled if it repays, 2 threads, allocator default)"
    )


def test_the_allocator_is_set_on_linux_only(monkeypatch: pytest.MonkeyPatch) -> None:
    if platform.libc_ver()[0] == "glibc":
        assert keep_large_buffers() == "mallopt"
    monkeypatch.setattr(module.sys, "platform", "darwin")
    assert keep_large_buffers() == "default"
