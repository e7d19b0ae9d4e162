"""What the tests share: the golden folder, and models and bundles that are made once a run."""

from __future__ import annotations

import ctypes
import gc
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from made_up_exports import export_made_up

# the same on every CPU; tests of what `auto` takes leave it out
os.environ["RIS_COMPUTE"] = "fp32"

GOLDEN = Path(__file__).parent / "golden"
REPO = Path(__file__).parent.parent

FULL_SIZE = (
    "export/test_full_size.py",
    "export/test_checkpoint_full_size.py",
    "export/test_rela_full_size.py",
    "export/test_cgformer_full_size.py",
    "export/test_evfsam_full_size.py",
    "export/test_lisa_full_size.py",
    "reference/cgformer/test_golden_end_to_end.py",
    "reference/cgformer/test_golden_modules.py",
    "reference/dfam/test_golden_modules.py",
    "reference/dfam/test_golden_end_to_end.py",
    "reference/dfam/test_weights_and_sizes.py",
    "reference/evfsam/test_golden_end_to_end.py",
    "reference/evfsam/test_golden_modules.py",
    "reference/evfsam/test_sam2_modules.py",
    "reference/lisa/test_golden_end_to_end.py",
    "reference/lisa/test_golden_modules.py",
    "reference/rela/test_golden_end_to_end.py",
    "reference/rela/test_golden_modules.py",
    "training/test_golden_step.py",
)
"""Tests with the paper's sizes, which need up to 10 GB: only one process runs them."""

MARKED = {
    "full_size": FULL_SIZE,
    "training": ("training/",),
    "cpp": ("cpp/",),
    "ray": ("serving/test_batch.py",),
    "slow": (
        "calibration/test_int8.py",
        "calibration/test_numerics.py",
        "engines/test_tensorrt_build.py",
        "evaluation/test_evaluation.py",
        "export/test_checkpoint_export.py",
        "export/test_export_command.py",
        "export/test_export_engine.py",
        "export/test_named.py",
        "export/test_named_evfsam.py",
        "export/test_named_lisa.py",
        "export/test_rela.py",
        "export/test_cgformer.py",
        "export/test_evfsam.py",
        "export/test_lisa.py",
        "export/test_held.py",
        "export/test_space.py",
        "export/test_weight_format.py",
        "runtime/test_bench.py",
        "runtime/test_processes.py",
        "test_demo.py",
        "test_readme.py",
    ),
}
"""What `make test-quick` leaves out, by the mark that its files get."""


def _file(item: pytest.Item) -> str:
    return item.nodeid.split("::")[0].removeprefix("tests/")


def _group(file: str) -> str:
    """The group of a file's tests, which stay in one process where several share them.

    A file is a group, as its fixtures are made once. So are the full-size files together, and
    those of libris, which share a build folder.
    """
    file = file.removeprefix("tests/")
    if file in FULL_SIZE:
        return "full-size"
    return "libris" if file.startswith("cpp/") else file


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the files, and puts the full-size ones first, as they take longest."""
    for item in items:
        for mark, files in MARKED.items():
            if _file(item).startswith(files):
                item.add_marker(mark)
    items.sort(key=lambda item: _group(_file(item)) != "full-size")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """A graph is traced once for all tests; commands in processes of their own trace anew."""
    if "ris.export.bundle_writer" in sys.modules:
        from traced import share_traces

        share_traces()


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Gives back the gigabytes of full size, which the C library would keep to the end."""
    if _file(item) in FULL_SIZE and (nextitem is None or _file(nextitem) != _file(item)):
        gc.collect()
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
        if trim is not None:
            trim(0)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Groups by `_group`.

    The mark `xdist_group` does nothing with pytest 9.2 and pytest-xdist 3.8.
    """
    from xdist.scheduler import LoadScopeScheduling

    class Groups(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return _group(nodeid.split("::")[0])

    return Groups(config, log)


@pytest.fixture(scope="session")
def golden_keys() -> dict[str, dict]:
    """Every key of an official checkpoint with shape, dtype and use."""
    return json.loads((GOLDEN / "keys.json").read_text())


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory):
    """[CLS] variant with the no-target head, FP32: what `ris-export --preset tiny` writes."""
    from ris.reference.dfam.config import PRESETS

    return export_made_up(tmp_path_factory.mktemp("tiny"), PRESETS["tiny"])


@pytest.fixture(scope="session")
def tiny_fp16_bundle(tmp_path_factory):
    from ris.reference.dfam.config import PRESETS

    return export_made_up(tmp_path_factory.mktemp("tiny-fp16"), PRESETS["tiny"], precision="fp16")


@pytest.fixture(scope="session")
def tiny_bf16_bundle(tmp_path_factory):
    from ris.reference.dfam.config import PRESETS

    return export_made_up(tmp_path_factory.mktemp("tiny-bf16"), PRESETS["tiny"], precision="bf16")


@pytest.fixture(scope="session")
def tiny_category_bundle(tmp_path_factory):
    from ris.reference.dfam.config import PRESETS

    return export_made_up(
        tmp_path_factory.mktemp("tiny-category"), PRESETS["tiny"].with_category_query()
    )


@pytest.fixture(scope="session")
def tiny_supplement_bundle(tmp_path_factory):
    """The supplement's configuration, with the sampling written as gathers."""
    from ris.reference.dfam.config import PRESETS

    return export_made_up(
        tmp_path_factory.mktemp("tiny-supplement"),
        PRESETS["tiny"].with_supplement(),
        sampling="gather",
    )


@pytest.fixture(scope="session")
def tiny_gather_bundle(tmp_path_factory):
    """FP16, with the sampling written as gathers: what `--engine tensorrt` exports."""
    from ris.reference.dfam.config import PRESETS

    return export_made_up(
        tmp_path_factory.mktemp("tiny-gather"), PRESETS["tiny"], precision="fp16", sampling="gather"
    )


def _export_rela(folder, precision="fp32", sampling="native"):
    from ris.reference.rela.config import PRESETS

    return export_made_up(folder, PRESETS["tiny-rela"], precision, sampling, family="rela")


@pytest.fixture(scope="session")
def rela_bundle(tmp_path_factory):
    """ReLA's, FP32: what `ris-export --preset tiny-rela --random-weights 0` writes."""
    return _export_rela(tmp_path_factory.mktemp("rela"))


@pytest.fixture(scope="session")
def rela_half_bundle(tmp_path_factory):
    return _export_rela(tmp_path_factory.mktemp("rela-fp16"), "fp16")


@pytest.fixture(scope="session")
def rela_gather_bundle(tmp_path_factory):
    """FP32, with the sampling written as gathers."""
    return _export_rela(tmp_path_factory.mktemp("rela-gather"), sampling="gather")


@pytest.fixture(scope="session")
def rela_bf16_bundle(tmp_path_factory):
    return _export_rela(tmp_path_factory.mktemp("rela-bf16"), "bf16")


def _export_cgformer(folder, precision="fp32", **choices):
    from dataclasses import replace

    from ris.reference.cgformer.config import PRESETS

    config = replace(PRESETS["tiny-cgformer"], **choices)
    return export_made_up(folder, config, precision, family="cgformer")


@pytest.fixture(scope="session")
def cgformer_bundle(tmp_path_factory):
    """CGFormer's, FP32: what `ris-export --preset tiny-cgformer --random-weights 0` writes."""
    return _export_cgformer(tmp_path_factory.mktemp("cgformer"))


@pytest.fixture(scope="session")
def cgformer_sampled_bundle(tmp_path_factory):
    """The same with `--assignment sampled`."""
    return _export_cgformer(tmp_path_factory.mktemp("cgformer-sampled"), assignment="sampled")


@pytest.fixture(scope="session")
def cgformer_half_bundle(tmp_path_factory):
    return _export_cgformer(tmp_path_factory.mktemp("cgformer-fp16"), "fp16")


@pytest.fixture(scope="session")
def cgformer_bf16_bundle(tmp_path_factory):
    return _export_cgformer(tmp_path_factory.mktemp("cgformer-bf16"), "bf16")


def _export_evfsam(folder, preset, precision="fp32"):
    from ris.reference.evfsam.config import PRESETS

    return export_made_up(folder, PRESETS[preset], precision, family="evfsam")


@pytest.fixture(scope="session")
def evfsam_bundle(tmp_path_factory):
    """EVF-SAM's on SAM, FP32: what `ris-export --preset tiny-evfsam --random-weights 0` writes."""
    return _export_evfsam(tmp_path_factory.mktemp("evfsam"), "tiny-evfsam")


@pytest.fixture(scope="session")
def evfsam2_bundle(tmp_path_factory):
    """The same on SAM 2."""
    return _export_evfsam(tmp_path_factory.mktemp("evfsam2"), "tiny-evfsam2")


@pytest.fixture(scope="session")
def evfsam_half_bundle(tmp_path_factory):
    return _export_evfsam(tmp_path_factory.mktemp("evfsam-fp16"), "tiny-evfsam", "fp16")


@pytest.fixture(scope="session")
def evfsam2_half_bundle(tmp_path_factory):
    return _export_evfsam(tmp_path_factory.mktemp("evfsam2-fp16"), "tiny-evfsam2", "fp16")


@pytest.fixture(scope="session")
def evfsam_bf16_bundle(tmp_path_factory):
    return _export_evfsam(tmp_path_factory.mktemp("evfsam-bf16"), "tiny-evfsam", "bf16")


@pytest.fixture(scope="session")
def evfsam2_bf16_bundle(tmp_path_factory):
    return _export_evfsam(tmp_path_factory.mktemp("evfsam2-bf16"), "tiny-evfsam2", "bf16")


def _export_lisa(folder, precision="fp32"):
    from ris.reference.lisa.config import PRESETS

    return export_made_up(folder, PRESETS["tiny-lisa"], precision, family="lisa")


@pytest.fixture(scope="session")
def lisa_bundle(tmp_path_factory):
    """LISA's, FP32: what `ris-export --preset tiny-lisa --random-weights 0` writes."""
    return _export_lisa(tmp_path_factory.mktemp("lisa"))


@pytest.fixture(scope="session")
def lisa_narrow_bundle(tmp_path_factory):
    """Weights in 8 bits in the picture's graph of the language model, in 4 in the question's."""
    from ris.reference.lisa.config import PRESETS

    folder, weights = tmp_path_factory.mktemp("lisa-narrow"), {"language_prefix": "int8"}
    weights |= {"language_question": "int4"}
    return export_made_up(folder, PRESETS["tiny-lisa"], family="lisa", weights=weights)


@pytest.fixture(scope="session")
def lisa_half_bundle(tmp_path_factory):
    return _export_lisa(tmp_path_factory.mktemp("lisa-fp16"), "fp16")


@pytest.fixture(scope="session")
def lisa_bf16_bundle(tmp_path_factory):
    return _export_lisa(tmp_path_factory.mktemp("lisa-bf16"), "bf16")


@pytest.fixture(scope="session")
def format_1_bundle(tmp_path_factory):
    """The built-in bundle as it was in format 1."""
    import format_1

    return format_1.lay(tmp_path_factory.mktemp("format-1") / "bundle")


@pytest.fixture(scope="session", params=["chained", "whole"])
def made_up_bundle(request, tmp_path_factory):
    """Bundles of other stages than `dfam` has (`made_up_family`)."""
    pytest.importorskip("onnx", reason="the onnx package writes these bundles")
    import made_up_family

    return made_up_family.write(tmp_path_factory.mktemp("made-up") / request.param, request.param)


@pytest.fixture(scope="session")
def toy_bundle(tmp_path_factory):
    """FP32, of a family that only the tests know."""
    import toy_family

    return toy_family.export(tmp_path_factory.mktemp("toy") / "ris-bundle")


@pytest.fixture(scope="session")
def noisy_bundle(tmp_path_factory):
    """FP32, of a family that only the tests know: drawn, letterboxed, of probabilities."""
    import noisy_family

    return noisy_family.export(tmp_path_factory.mktemp("noisy") / "ris-bundle")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hub on loopback, which this test and what it starts talk to (`hub_server`)."""
    pytest.importorskip("huggingface_hub", reason='not installed: pip install ".[hub]"')
    import hub_server

    with hub_server.serving() as served:
        served.use(monkeypatch, tmp_path / "hf-home")
        yield served


@pytest.fixture
def bundle_copy(tiny_bundle, tmp_path):
    """A bundle that a test may damage."""
    import shutil

    return shutil.copytree(tiny_bundle, tmp_path / "copy")


@pytest.fixture(scope="session")
def picture():
    """uint8 RGB [480, 640, 3]: the drawn park."""
    from ris.export.sample import sample_image

    return sample_image()
