"""Which ONNX Runtime is opened where several wheels lie side by side, and what is said of them."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from itertools import permutations
from pathlib import Path

import pytest

import pard_rt
from conftest import TinyModels

INSTALLED = Path(pard_rt.onnxruntime_providers()[0])
WHEELS = {
    "cuda": "onnxruntime-gpu",
    "migraphx": "onnxruntime-migraphx",
    "rocm": "onnxruntime-rocm",
}

# A library that hands everything on to the installed one, but claims to be of some version and to
# have been built for CUDA: what a wheel is on a machine without the driver.
PRETENDER = """
#include <dlfcn.h>
#include <stdint.h>
#include <string.h>
typedef struct { const void* const* (*get_api)(uint32_t); const char* (*version)(void); } Base;
static const Base* installed(void) {
  void* library = dlopen(INSTALLED, RTLD_NOW | RTLD_LOCAL);
  return ((const Base* (*)(void))dlsym(library, "OrtGetApiBase"))();
}
static char* names[] = {"CUDAExecutionProvider", "CPUExecutionProvider"};
static void* get_available_providers(char*** list, int* count) {
  *list = names;
  *count = 2;
  return 0;
}
static void* release_available_providers(char** list, int count) { return 0; }
static const void* const* get_api(uint32_t version) {
  static const void* table[275];  /* up to the last function pard-rt calls */
  memcpy(table, installed()->get_api(version), sizeof(table));
  table[125] = (const void*)get_available_providers;
  table[126] = (const void*)release_available_providers;
  return table;
}
static const char* version(void) { return VERSION; }
const Base* OrtGetApiBase(void) {
  static const Base base = {get_api, version};
  return &base;
}
"""


@pytest.fixture
def folder(tiny_models: TinyModels) -> Path:
    return tiny_models.folder("llama", "gqa", seed=1, mask_token=True, num_hidden_layers=1)


@pytest.fixture
def site(tmp_path: Path) -> Callable[[str, str], Path]:
    """Makes a site-packages directory with a copy of the installed wheel's libraries."""

    def make(name: str, library: str = INSTALLED.name) -> Path:
        capi = tmp_path / name / "onnxruntime" / "capi"
        capi.mkdir(parents=True)
        for file in INSTALLED.parent.glob("libonnxruntime*.so*"):
            shutil.copy(file, capi / (library if file.name == INSTALLED.name else file.name))
        return tmp_path / name

    return make


def search_in(monkeypatch: pytest.MonkeyPatch, *sites: Path) -> None:
    monkeypatch.delenv("PARD_RT_ONNXRUNTIME", raising=False)
    monkeypatch.setattr(sys, "path", [*map(str, sites)])


def test_of_two_builds_the_first_on_the_path_is_opened(
    folder: Path, site: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    sites = (site("one"), site("other", "libonnxruntime.so.1.99.0"))
    for order in permutations(sites):
        search_in(monkeypatch, *order)
        model = pard_rt.OnnxModel(folder, threads=1)
        assert Path(model.onnxruntime_path).is_relative_to(order[0])


def test_libraries_that_cannot_serve_are_passed_over(
    folder: Path, site: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    usable = site("usable")
    other = usable.with_name("unusable")
    capi = other / "onnxruntime" / "capi"
    capi.mkdir(parents=True)
    (capi / "libonnxruntime.so.1.99.0").write_bytes(INSTALLED.read_bytes()[:4096])
    (capi / "libonnxruntime.so.1.98.0").touch()
    shutil.copy(  # a library, but another one
        INSTALLED.with_name("libonnxruntime_providers_shared.so"), capi / "libonnxruntime.so"
    )
    for order in permutations((usable, other)):
        search_in(monkeypatch, *order)
        model = pard_rt.OnnxModel(folder, threads=1)
        assert Path(model.onnxruntime_path).is_relative_to(usable)
    shutil.copy(INSTALLED, capi / "libonnxruntime.so.1.97.0")  # in one directory, too
    search_in(monkeypatch, other)
    assert Path(pard_rt.OnnxModel(folder, threads=1).onnxruntime_path).name.endswith("1.97.0")


@pytest.mark.parametrize("provider", sorted(WHEELS))
def test_a_missing_provider_is_an_error_that_names_its_wheel(
    provider: str, folder: Path, site: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    sites = (site("one"), site("other", "libonnxruntime.so.1.99.0"))
    search_in(monkeypatch, *sites)
    with pytest.raises(pard_rt.RuntimeMissingError) as caught:
        pard_rt.OnnxModel(folder, provider=provider)
    assert f"pip install {WHEELS[provider]}," in caught.value.remedy
    assert provider in caught.value.problem
    assert all(str(path) in caught.value.actual for path in sites)


def make_pretender(site: Path, version: str) -> None:
    """Put a pretending library where a wheel of that directory would have its own."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler to make the pretending library with")
    library = site / "onnxruntime" / "capi" / "libonnxruntime.so.1.99.0"
    library.parent.mkdir(parents=True)
    defines = [f'-DINSTALLED="{INSTALLED}"', f'-DVERSION="{version}"']
    subprocess.run(
        [compiler, "-shared", "-fPIC", *defines, "-o", str(library), "-x", "c", "-", "-ldl"],
        input=PRETENDER.encode(),
        check=True,
    )


@pytest.mark.parametrize(("version", "opens"), [("1.21.1", False), ("1.22.0", True)])
def test_eight_bits_need_our_kernels_or_a_version_that_has_them(
    version: str,
    opens: bool,
    tiny_models: TinyModels,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    folders = [
        tiny_models.folder("llama", "gqa", weights, seed=1, mask_token=True, num_hidden_layers=1)
        for weights in ("fp32", "int8")
    ]
    make_pretender(tmp_path, version)
    search_in(monkeypatch, tmp_path)
    assert pard_rt.OnnxModel(folders[0], threads=1).onnxruntime_version == version
    assert pard_rt.OnnxModel(folders[1], threads=1).exact  # by kernels of our own
    if opens:
        assert pard_rt.OnnxModel(folders[1], threads=1, own_matmul=False).exact
        return
    with pytest.raises(pard_rt.RuntimeMissingError, match="needs a newer ONNX Runtime") as caught:
        pard_rt.OnnxModel(folders[1], threads=1, own_matmul=False)
    assert "1.22" in caught.value.expected
    assert version in caught.value.actual


@pytest.mark.parametrize(("version", "opens"), [("1.23.2", False), ("1.24.0", True)])
def test_windows_need_our_kernel_or_a_version_that_counts_a_row_s_own_key(
    version: str,
    opens: bool,
    tiny_models: TinyModels,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    folder = tiny_models.folder("mistral_window", "gqa", num_hidden_layers=1)
    make_pretender(tmp_path, version)
    search_in(monkeypatch, tmp_path)
    assert pard_rt.OnnxModel(folder, threads=1).own_attention
    if opens:
        assert not pard_rt.OnnxModel(folder, threads=1, own_attention=False).own_attention
        return
    with pytest.raises(pard_rt.RuntimeMissingError, match="needs a newer ONNX Runtime") as caught:
        pard_rt.OnnxModel(folder, threads=1, own_attention=False)
    assert "1.24" in caught.value.expected
    assert version in caught.value.actual


def test_libraries_older_than_any_that_serves_are_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    make_pretender(tmp_path, "1.19.2")
    with pytest.raises(pard_rt.RuntimeMissingError, match=r"version 1\.19\.2"):
        pard_rt.OnnxModel(folder, threads=1, onnxruntime=str(tmp_path))


def test_a_provider_without_its_driver_is_an_error_and_the_cpu_still_runs(
    folder: Path, site: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    make_pretender(tmp_path / "pretender", "1.99.0")
    for order in permutations((site("plain"), tmp_path / "pretender")):
        search_in(monkeypatch, *order)
        with pytest.raises(pard_rt.ModelError, match="could not use the provider 'cuda'") as caught:
            pard_rt.OnnxModel(folder, provider="cuda")
        assert "driver" in caught.value.remedy
        model = pard_rt.OnnxModel(folder, threads=1)
        assert Path(model.onnxruntime_path).is_relative_to(order[0])


def test_entries_of_the_search_path_that_are_no_strings_are_passed_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "path", [Path("/nowhere"), *sys.path])
    assert pard_rt.onnxruntime_providers()[0] == str(INSTALLED)
