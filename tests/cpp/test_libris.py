"""The C ABI beside the Python runtime: the same bundle and pictures, the same masks; the programs
built on it.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from libris_helper import REPO, mask_iou, run
from ris.data.scenes import make_samples, make_scene
from ris.runtime import load
from ris.runtime.image import load_rgb
from ris.runtime.results import ResultWriter

EXPRESSIONS = ["left man", "the red ball on the right", "second car", "xylophone ☃"]
BUNDLES = [
    "tiny_bundle",
    "tiny_fp16_bundle",
    "tiny_bf16_bundle",
    "tiny_category_bundle",
    "tiny_supplement_bundle",
    "format_1_bundle",
]


@pytest.mark.parametrize("name", BUNDLES)
def test_masks_are_pythons(libris, request, picture, name):
    bundle = request.getfixturevalue(name)
    categories = ["person", "sports ball", "car", "person"] if "category" in name else None
    pictures = [picture, *(make_scene(seed=seed, split="heldout").image for seed in range(4))]
    pictures.append(np.ascontiguousarray(picture[:200, :333]))
    model = libris.open(bundle)
    with load(bundle, engine="onnxruntime") as python:
        for rgb in pictures:
            scene = libris.encode_image(model, rgb)
            got = libris.ask(scene, EXPRESSIONS, categories)
            libris.check(libris.abi.ris_free_scene(scene))
            want = python.encode_image(rgb).segment_many(EXPRESSIONS, categories=categories)
            for answer, expected in zip(got, want, strict=True):
                assert mask_iou(answer["mask"], expected.mask) >= 0.9999
                np.testing.assert_allclose(answer["logits"], expected.logits, rtol=0, atol=1e-3)
                assert answer["is_no_target"] == expected.is_no_target
                assert answer["no_target"] == pytest.approx(
                    -1 if expected.no_target is None else expected.no_target, abs=1e-5
                )
                assert answer["score"] == pytest.approx(expected.score, abs=1e-5)
                assert answer["notes"].splitlines() == list(expected.notes)
    libris.check(libris.abi.ris_close(model))


def test_masks_of_drawn_scenes(libris, tiny_bundle):
    """$RIS_CPP_SCENES held-out scenes, asked what they show, with $RIS_CPP_BUNDLE: 8 and the tiny
    one by default.
    """
    bundle = Path(os.environ.get("RIS_CPP_BUNDLE", tiny_bundle))
    model = libris.open(bundle)
    ious = []
    with load(bundle, engine="onnxruntime") as python:
        for seed in range(int(os.environ.get("RIS_CPP_SCENES", "8"))):
            drawn = make_scene(seed=seed, split="heldout")
            expressions = [sample.expression for sample in make_samples(drawn, seed=0, count=2)]
            scene = libris.encode_image(model, drawn.image)
            got = libris.ask(scene, expressions)
            libris.check(libris.abi.ris_free_scene(scene))
            want = python.encode_image(drawn.image).segment_many(expressions)
            ious += [mask_iou(a["mask"], b.mask) for a, b in zip(got, want, strict=True)]
    libris.check(libris.abi.ris_close(model))
    print(f"{len(ious)} masks, the least IoU {min(ious):.6f}")
    assert min(ious) >= 0.9999


def test_more_expressions_than_go_at_once(libris, tiny_bundle, picture):
    model = libris.open(tiny_bundle)
    scene = libris.encode_image(model, picture)
    many = [f"{word} man" for word in ("left", "right", "red", "tall", "old")] * 4
    together = libris.ask(scene, many)
    for i in (0, 7, 8, 19):
        assert mask_iou(together[i]["mask"], libris.ask(scene, [many[i]])[0]["mask"]) >= 0.9999
    libris.check(libris.abi.ris_free_scene(scene))
    libris.check(libris.abi.ris_close(model))


def test_a_tie_with_the_threshold_is_not_refused(libris, tiny_bundle, picture):
    model = libris.open(tiny_bundle)
    scene = libris.encode_image(model, picture)
    own = libris.ask(scene, EXPRESSIONS[:1])[0]["no_target"]
    assert 0 < own < 1
    for threshold, refused in ((own, False), (1, False), (np.nextafter(own, 0), True), (0, True)):
        [answer] = libris.ask(scene, EXPRESSIONS[:1], threshold=threshold)
        assert answer["is_no_target"] is refused
        assert answer["mask"].any() != refused
    libris.check(libris.abi.ris_free_scene(scene))
    libris.check(libris.abi.ris_close(model))


def test_two_python_threads(libris, tiny_bundle, picture):
    model = libris.open(tiny_bundle)
    scene = libris.encode_image(model, picture)
    want = [libris.ask(scene, [e])[0]["logits"] for e in EXPRESSIONS]
    with ThreadPoolExecutor(2) as pool:
        got = list(pool.map(lambda e: libris.ask(scene, [e])[0]["logits"], EXPRESSIONS * 3))
    for one, expected in zip(got, want * 3, strict=True):
        np.testing.assert_allclose(one, expected, atol=1e-5)
    libris.check(libris.abi.ris_close(model))


def test_info(libris, tiny_category_bundle):
    model = libris.open(tiny_category_bundle)
    text = ctypes.c_char_p()
    libris.check(libris.abi.ris_info(model, ctypes.byref(text)))
    info = json.loads(text.value)
    assert info["trained"] is False
    assert "person" in info["categories"]
    assert {graph["provider"] for graph in info["graphs"].values()} == {"cpu"}
    assert info["family"] == "dfam"
    libris.check(libris.abi.ris_close(model))


def test_a_question_without_its_category(libris, tiny_category_bundle, picture):
    model = libris.open(tiny_category_bundle)
    scene = libris.encode_image(model, picture)
    wanted = "asks by category: name each object's category in options.categories"
    with pytest.raises(AssertionError, match=wanted):
        libris.ask(scene, ["left man"])
    libris.check(libris.abi.ris_free_scene(scene))
    libris.check(libris.abi.ris_close(model))


def test_a_hostile_and_a_busy_caller(cpp_build, tiny_bundle, tmp_path):
    assert "all passed" in run(cpp_build / "tests" / "ris-test", tiny_bundle, tmp_path)


def test_sanitizers_are_silent(sanitized_build, tiny_bundle, tmp_path):
    """The same, and mutated files, in a build that stops at bad memory, leaks and undefined
    behaviour.
    """
    assert "all passed" in run(sanitized_build / "tests" / "ris-test", tiny_bundle, tmp_path)
    corpus = sorted((REPO / "cpp" / "tests" / "corpus").iterdir())
    assert len(corpus) >= 6
    assert "none got past" in run(sanitized_build / "tests" / "ris-fuzz-replay", 3000, *corpus)


def test_starts_with_any_onnxruntime(cpp_build, tiny_bundle, tmp_path):
    """No version of a release is asked for; a library that is too old is a sentence."""
    undefined = run("nm", "-D", "--undefined-only", cpp_build / "libris.so").split()
    assert [name for name in undefined if name.startswith("Ort")] == ["OrtGetApiBase"]
    (tmp_path / "old.c").write_text(
        "static const void *api(unsigned version) { return 0; }\nstatic const char *version(void) {"
        ' return "1.14.1"; }\nstatic const struct { const void *(*api)(unsigned); const char'
        " *(*version)(void); } base = {api, version};\nconst void *OrtGetApiBase(void) { return"
        " &base; }\n"
    )
    library = tmp_path / "libonnxruntime.so.1"
    run("gcc", "-shared", "-fPIC", f"-Wl,-soname,{library.name}", tmp_path / "old.c", "-o", library)
    hello = [cpp_build / "examples" / "ris-hello", tiny_bundle, "left man"]
    env = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path)}
    done = subprocess.run(hello, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 2
    assert "this ONNX Runtime is 1.14.1, libris needs 1.20 or later" in done.stderr


def test_compared_with_python(cpp_build, tiny_bundle):
    command = [
        sys.executable,
        REPO / "cpp" / "compare_startup.py",
        tiny_bundle,
        "--build",
        cpp_build,
    ]
    done = subprocess.run(
        [*command, "--runs", "1", "--json"], capture_output=True, text=True, check=True, cwd=REPO
    )
    medians = json.loads(done.stdout)
    assert medians["libris"].keys() == medians["Python"].keys()
    assert all(value > 0 for found in medians.values() for value in found.values())


def test_only_the_abi_is_exported(cpp_build):
    symbols = run("nm", "-D", "--defined-only", cpp_build / "libris.so").split("\n")
    names = {line.split()[-1] for line in symbols if line}
    assert {name for name in names if not name.startswith("ris_")} == set()
    assert "ris_open" in names


def test_stripped_size(cpp_build, tmp_path):
    shutil.copy(cpp_build / "libris.so", tmp_path / "libris.so")
    run("strip", tmp_path / "libris.so")
    assert (tmp_path / "libris.so").stat().st_size < 1_500_000


@pytest.mark.parametrize(
    ("suffix", "orientation"), [("ppm", 1), ("png", 6), *(("jpg", n) for n in range(1, 9))]
)
def test_ris_infer(cpp_build, tiny_bundle, picture, tmp_path, suffix, orientation):
    """Masks and overlays, which show the decoded picture, as `ris-infer` in Python writes them."""
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    path, words = tmp_path / f"a.{suffix}", ["left man", "Left man!"]
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {} if suffix == "ppm" else {"exif": exif}
    Image.fromarray(picture[:301, :403]).save(path, **options)
    run(cpp_build / "examples" / "ris-infer", tiny_bundle, path, *words, "--out", ours)
    rgb = load_rgb(path)
    with load(tiny_bundle, engine="onnxruntime") as model:
        writer = ResultWriter(theirs, ("mask", "overlay"))
        written = writer.write(path, rgb, model.encode_image(rgb).segment_many(words), model)
    assert len(written) == 4
    for file in written:
        want, got = np.asarray(Image.open(file)), np.asarray(Image.open(ours / file.name))
        if "mask" in file.name:
            assert mask_iou(got > 0, want > 0) >= 0.9999
        else:
            off = np.abs(got.astype(int) - want.astype(int)).max(-1)
            assert (off > 2).mean() < 2e-4


def test_a_bad_expression_does_not_stop_the_others(cpp_build, tiny_bundle, tmp_path):
    words = ["left man", "", b"\xff\xfe", " ", "dog"]
    program = [cpp_build / "examples" / "ris-infer", tiny_bundle, REPO / "examples" / "park.jpg"]
    done = subprocess.run([*program, *words, "--out", tmp_path], capture_output=True, check=False)
    assert done.returncode == 2
    bad = [line for line in done.stderr.decode().splitlines() if line.startswith("ris-infer: ")]
    assert bad == [
        'ris-infer: expression 2: the expression is empty; say what to find, such as "left man"',
        "ris-infer: expression 3: the expression is not valid UTF-8",
        'ris-infer: expression 4: the expression is empty; say what to find, such as "left man"',
    ]
    assert {path.name for path in tmp_path.glob("*.mask.png")} == {
        "park.left-man.mask.png",
        "park.dog.mask.png",
    }


def test_ris_infer_helps(cpp_build):
    assert "Examples:" in run(cpp_build / "examples" / "ris-infer", "--help")


def test_ris_infer_says_what_is_wrong(cpp_build, tiny_bundle, picture, tmp_path):
    program = cpp_build / "examples" / "ris-infer"
    (tmp_path / "half.jpg").write_bytes(b"\xff\xd8\xff")
    (tmp_path / "half.png").write_bytes(b"\x89PNG\r\n")
    (tmp_path / "text.jpg").write_text("no picture")
    Image.fromarray(picture).save(tmp_path / "whole.jpg")
    whole = (tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    for words in (
        ["nowhere", "x.png", "man"],
        *(
            [tiny_bundle, tmp_path / f, "man"]
            for f in ("half.jpg", "half.png", "text.jpg", "cut.jpg", "none")
        ),
        [tiny_bundle, tmp_path / "whole.jpg", "man", "--threads", "-3"],
        [tiny_bundle, tmp_path / "whole.jpg", "man", "--provider", "cpu"],
        [
            tiny_bundle,
            tmp_path / "whole.jpg",
            "man",
            "--providers",
            "tensorrt",
            "--engine-cache",
            tmp_path / "none",
        ],
    ):
        done = subprocess.run([program, *words], capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert done.stderr.startswith("ris-infer: ")
        assert done.stderr.count("\n") == 1


def test_a_provider_that_is_not_there(cpp_build, tiny_bundle):
    """Nothing falls back: with pip's CPU library, an error that names the provider and what there
    is.
    """
    if "RIS_ONNXRUNTIME_ROOT" in os.environ:
        pytest.skip("this ONNX Runtime may have it")
    program = [
        cpp_build / "examples" / "ris-infer",
        tiny_bundle,
        REPO / "examples" / "park.jpg",
        "man",
        "--providers",
    ]
    for providers, name in (
        ("cuda", "CUDA"),
        ("cpu,fusion=cuda", "CUDA"),
        ("tensorrt,fusion=cpu", "Tensorrt"),
    ):
        done = subprocess.run([*program, providers], capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert f"this ONNX Runtime has no {name}ExecutionProvider (it has " in done.stderr
        assert done.stderr.count("\n") == 1


def test_the_c_example(cpp_build, tiny_bundle):
    text = run(cpp_build / "examples" / "ris-hello", tiny_bundle, "left man")
    assert "score" in text
    assert len(text.splitlines()) == 17


def test_installed(cpp_build, onnxruntime_root, tiny_bundle, tmp_path):
    """The install tree, moved elsewhere: a CMake project, and pkg-config."""
    prefix = tmp_path / "prefix"
    run("cmake", "--install", cpp_build, "--prefix", prefix)
    consumer = tmp_path / "consumer"
    run(
        "cmake",
        "-S",
        REPO / "cpp" / "examples" / "consumer",
        "-B",
        consumer,
        f"-DCMAKE_PREFIX_PATH={prefix}",
    )
    run("cmake", "--build", consumer)
    for program in ("consumer", "consumer-static"):
        assert "a mask of 64x48" in run(consumer / program, tiny_bundle)
    if shutil.which("pkg-config") is None:
        pytest.skip("no pkg-config here")
    [folder] = prefix.glob("lib*/**/pkgconfig")
    flags = run(
        "pkg-config",
        "--cflags",
        "--libs",
        "ris",
        env={"PKG_CONFIG_PATH": str(folder), "PATH": "/usr/bin:/bin"},
    )
    source = REPO / "cpp" / "examples" / "hello.c"
    run(
        "gcc",
        "-std=c99",
        source,
        "-o",
        tmp_path / "hello",
        *flags.split(),
        f"-Wl,-rpath,{folder.parent}",
    )
    assert "score" in run(tmp_path / "hello", tiny_bundle, "left man")
