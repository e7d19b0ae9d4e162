"""Each step inside libris beside the same step in Python: the vectors are made here, by the Python
side.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from mask_goldens import LETTERBOX, PICTURES, PROBABILITIES, letterbox, logits_of, mask_of
from PIL import Image

from libris_helper import MAX_TOKENS, Rule, pointer, tokenize
from ris.engines.errors import ExpressionError
from ris.engines.onnx_widen import widened
from ris.reference.dfam.config import PRESETS
from ris.reference.tokenizer import build_tokenizer, read_vocabulary
from ris.runtime.bundle import open_bundle
from ris.runtime.drawn import draw
from ris.runtime.host import prepare_images
from ris.runtime.interpolate import MODES, resize_maps
from ris.runtime.manifest import Drawn, manifest_from_dict
from ris.runtime.masks import MaskRule, mask_from_logits, mask_score, resize_logits
from ris.runtime.text import ExpressionTokenizer

TEXT = """left right man woman the a of in red blue umbrella second third from behind unaffable
naïve café 人 日本語 supercalifragilisticexpialidocious İstanbul ǅ ﬁ don't blue-ish 1,000.50
🐶 👩‍👩‍👧 антон مرحبا हिन्दी 한국어 각 가 Ω Å é ȩ́ \u200b \u00ad \u3000 \x1f \x85 \u2028
x\u0301\u0323 a\u0323\u0301 \U0001d165 \ue000 [CLS] [SEP] [MASK] [PAD] [UNK] [mask] … —
“ ” ¿ § ＄ ‿ ᠎ \ufeff xylophone Ünïcödé STRASSE ß ẞ ſ ı"""
WORDS = TEXT.replace("\n", " ").split(" ")  # at spaces alone: other whitespace is part of the test


def picture(rng, height, width):
    """Noise over a gradient."""
    ramp = np.linspace(0, 255, width)[None, :, None] * np.linspace(0.2, 1, height)[:, None, None]
    return np.clip(ramp + rng.normal(0, 60, (height, width, 3)), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("align", [False, True])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("source", [1, 2, 7, 24, 32, 48, 64, 65])
def test_interpolation(internals, mode, source, align):
    rng = np.random.default_rng(source)
    for target in (1, 16, 24, 48, 64, 100):
        maps = rng.normal(0, 3, (5, source, max(source - 1, 1))).astype(np.float32)
        out = np.empty((5, target, target + 3), np.float32)
        count = ctypes.c_size_t(len(maps))
        internals.test_resize_maps(
            pointer(maps),
            count,
            *maps.shape[1:],
            target,
            target + 3,
            int(mode == "bicubic"),
            int(align),
            pointer(out),
        )
        if align:
            rule = MaskRule(interpolation=mode, align_corners=True)
            want = np.stack([resize_logits(each, target, target + 3, rule) for each in maps])
        else:
            want = resize_maps(maps, target, target + 3, mode)
        np.testing.assert_allclose(out, want, rtol=0, atol=1e-5)


SIZES = [
    (1, 1),
    (1, 300),
    (300, 1),
    (255, 257),
    (256, 256),
    (256, 100),
    (480, 640),
    (1024, 1024),
    (1200, 1800),
    (37, 2500),
    (2500, 37),
    (301, 300),
    (403, 301),
    (640, 480),
    (1800, 1200),
]


@pytest.mark.parametrize("bicubic", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_resampling_is_pillows(internals, size, bicubic):
    rgb = picture(np.random.default_rng(0), *size)
    padded = np.full((size[0], 3 * size[1] + 5), 99, np.uint8)
    padded[:, : 3 * size[1]] = rgb.reshape(size[0], -1)
    method = Image.Resampling.BICUBIC if bicubic else Image.Resampling.BILINEAR
    for square in (256, 1024):
        want = np.asarray(Image.fromarray(rgb).resize((square, square), method))
        out = np.empty_like(want)
        stride = ctypes.c_size_t(padded.strides[0])
        internals.test_resize_pillow(
            pointer(padded), size[1], size[0], stride, square, square, int(bicubic), pointer(out)
        )
        np.testing.assert_array_equal(out, want)


def test_images_of_the_host(internals, tiny_bundle):
    wanted = open_bundle(tiny_bundle, verify=False).manifest.host.images
    assert {image.of for image in wanted.values()} == {"picture", "sam_image"}
    check_images(internals, tiny_bundle, wanted)


def test_letterboxes(internals, noisy_bundle):
    wanted = open_bundle(noisy_bundle, verify=False).manifest.host.images
    assert {image.fit for image in wanted.values()} == {"letterbox"}
    check_images(internals, noisy_bundle, wanted)


def test_cropped_middles(internals, lisa_bundle):
    wanted = open_bundle(lisa_bundle, verify=False).manifest.host.images
    assert {image.fit for image in wanted.values()} == {"letterbox", "crop"}
    sizes = [size for size in SIZES if max(size) <= 100 * min(size)]
    check_images(internals, lisa_bundle, wanted, ("sam_image", "clip_image"), sizes)


def test_words_are_stripped_and_lower_cased_as_pythons(internals):
    texts = ["  Left MAN\u2003", "\x1cÉCOLE\xa0", "İstanbul", "ΟΔΟΣ ΣΟΦΙΑΣ", "ΑΣ.", "Σ", "ẞ ǅ Ⅷ"]
    texts += ["A\u0345Σ", "ΑΣ'Α", "ΑΣ\u0301 b", "Ⴀ Ꭰ 𐐀"]
    for text in texts:
        out = ctypes.create_string_buffer(200)
        internals.test_lower(text.encode(), out, ctypes.c_size_t(200))
        assert out.value.decode() == text.strip().lower()


def test_squares_of_the_picture_without_antialiasing(internals, noisy_bundle, tmp_path):
    manifest = json.loads((noisy_bundle / "manifest.json").read_text())
    own = manifest["host"]["images"]["view"]
    for name in ("bilinear", "bicubic"):
        made = own | {"fit": "square", "size": 40, "filter": name, "antialias": False}
        manifest["host"]["images"][name] = made
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    wanted = manifest_from_dict(manifest).host.images
    check_images(internals, tmp_path, wanted)


def check_images(internals, bundle, wanted, exact=("sam_image", "view"), sizes=SIZES):
    """libris makes a bundle's images as Python does."""
    for size in sizes:
        rgb = picture(np.random.default_rng(1), *size)
        stride = ctypes.c_size_t(rgb.strides[0])
        for name, image in prepare_images(rgb, wanted).items():
            got = np.empty_like(image)
            internals.test_prepare(
                str(bundle).encode(),
                name.encode(),
                pointer(rgb),
                size[1],
                size[0],
                stride,
                pointer(got),
            )
            atol = 0 if name in exact else 1e-5
            np.testing.assert_allclose(got, image, rtol=0, atol=atol)


@pytest.mark.parametrize("size", SIZES)
def test_masks(internals, size):
    """To the bit, whatever the way to a mask."""
    logits = np.random.default_rng(2).normal(0, 4, (64, 64)).astype(np.float32)
    for rule in (
        MaskRule(),
        MaskRule(threshold=0.7),
        MaskRule("logits", "bicubic", False, -0.5),
        MaskRule("probabilities", "bicubic", True, 0.5),
        MaskRule("probabilities", "bilinear", True, 0.9),
        MaskRule(letterbox=96),
        MaskRule("probabilities", "bicubic", False, 0.3, letterbox=64),
    ):
        out, score = libris_mask(internals, logits, size, rule)
        np.testing.assert_array_equal(out, mask_from_logits(logits, *size, rule), str(rule))
        assert score == pytest.approx(mask_score(logits, rule, size), abs=1e-12)


def libris_mask(internals, logits, size, rule):
    """libris's mask, bool, and its score."""
    made = Rule(
        rule.of == "probabilities",
        rule.interpolation == "bicubic",
        rule.align_corners,
        rule.threshold,
        rule.letterbox or 0,
    )
    out = np.empty(size, np.uint8)
    score = internals.test_mask(
        pointer(logits), *logits.shape, *size, ctypes.byref(made), pointer(out)
    )
    return out.astype(bool), score


@pytest.mark.parametrize("name", PICTURES)
def test_a_mask_of_probabilities_is_the_authors(internals, name):
    mask, _ = libris_mask(internals, logits_of(name), PICTURES[name], PROBABILITIES)
    assert (mask != mask_of(name)).sum() <= 20


@pytest.mark.parametrize("number", range(4))
def test_a_letterboxs_mask_is_the_authors(internals, number):
    low, size, pixels = letterbox(number)
    mask, _ = libris_mask(internals, low, size, LETTERBOX)
    assert abs(int(mask.sum()) - pixels) <= 10


def test_random_numbers_are_pythons_to_the_bit(internals):
    for seed, number, place in ((0, 0, 0), (7, 3, 1), (2**31 - 1, 999, 5)):
        out = np.empty(18901, np.float32)
        internals.test_draw(len(out), seed, number, place, pointer(out))
        names = {f"v{i}": Drawn("logistic", (len(out),), seed) for i in range(place + 1)}
        want = draw(names, number=number)[f"v{place}"]
        np.testing.assert_array_equal(out.view(np.int32), want.view(np.int32))


def test_hashes(internals, tmp_path):
    rng = np.random.default_rng(3)
    for length in (
        0,
        1,
        55,
        56,
        63,
        64,
        65,
        119,
        120,
        1000,
        (1 << 18) - 1,
        1 << 18,
        (1 << 18) + 1,
        3 * (1 << 18) + 60,
    ):
        data = rng.bytes(length)
        (tmp_path / "file").write_bytes(data)
        out = ctypes.create_string_buffer(65)
        internals.test_sha256(str(tmp_path / "file").encode(), out)
        assert out.value.decode() == hashlib.sha256(data).hexdigest(), length


@pytest.fixture(scope="module")
def tokenizer_file(tmp_path_factory):
    """The full-size model's tokenizer."""
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    build_tokenizer(read_vocabulary(None, PRESETS["vitb-vitl336"])).save(str(path))
    return path


def test_every_character_is_what_tokenizers_says(internals, tokenizer_file):
    from tokenizers import Tokenizer

    reference = Tokenizer.from_file(str(tokenizer_file))
    texts = [f"a{c}b {c}" for c in map(chr, [*range(1, 0xD800), *range(0xE000, 0x110000)])]
    for start in range(0, len(texts), 100_000):
        part = texts[start : start + 100_000]
        want = np.zeros((len(part), MAX_TOKENS), np.int32)
        for row, encoding in zip(want, reference.encode_batch_fast(part), strict=True):
            row[: len(encoding.ids)] = encoding.ids[:MAX_TOKENS]
        wrong = (tokenize(internals, tokenizer_file, part)[0] != want).any(1)
        assert not wrong.any(), [hex(ord(part[i][1])) for i in np.flatnonzero(wrong)[:20]]


def test_several_thousand_expressions(internals, tokenizer_file, tiny_bundle):
    rng = np.random.default_rng(4)
    texts = [" ".join(rng.choice(WORDS, rng.integers(1, 40))) for _ in range(3000)]
    texts += ["".join(rng.choice(WORDS, rng.integers(1, 12))) for _ in range(2000)]
    texts += ["".join(map(chr, rng.integers(1, 0xD7FF, rng.integers(1, 60)))) for _ in range(1000)]
    texts += [
        "x" * 100,
        "x" * 101,
        "é" * 101,
        "x" * 1000,
        "x" * 1001,
        "",
        " \t",
        "\u200b",
        "\u200b a",
    ]
    for path in (tokenizer_file, tiny_bundle / "tokenizer.json"):
        python = ExpressionTokenizer(path, MAX_TOKENS)
        want = np.full((len(texts), MAX_TOKENS), -1, np.int32)
        for i, text in enumerate(texts):
            try:
                want[i] = python([text]).ids[0]
            except ExpressionError:
                continue
        got = tokenize(internals, path, texts)[0]
        wrong = (got != want).any(1)
        assert not wrong.any(), [texts[i] for i in np.flatnonzero(wrong)[:5]]


@pytest.mark.parametrize("padding", ["[PAD]", "man", "[SEP]"])
@pytest.mark.parametrize("end_id", [None, 5])
def test_notes(internals, tiny_bundle, padding, end_id):
    from tokenizers import Tokenizer

    path = tiny_bundle / "tokenizer.json"
    pad_id = Tokenizer.from_file(str(path)).token_to_id(padding)
    python = ExpressionTokenizer(path, MAX_TOKENS, pad_id, end_id)
    fits = MAX_TOKENS - 2
    texts = ["left ☃ man ☂", "the [PAD] Man", "left " * 40 + "end", "[UNK] man", "Ünknown☃"]
    texts += ["left " * (fits + more) for more in range(3)]
    ids, lines = tokenize(internals, path, texts, pad_id, end_id)
    np.testing.assert_array_equal(ids, python(texts).ids)
    assert lines.splitlines() == [
        f"{i} {note}" for i, text in enumerate(texts) for note in python([text]).notes[0]
    ]
    assert f"{padding} is padding to the model" in lines


def test_fp16_graphs_are_widened_as_in_python(
    internals, tiny_fp16_bundle, lisa_half_bundle, tmp_path
):
    """Those with FP16 edges as well."""
    internals.test_widened.restype = ctypes.c_size_t
    bundles = (tiny_fp16_bundle, lisa_half_bundle)
    for path in sorted(path for bundle in bundles for path in bundle.glob("**/*.onnx")):
        want = widened(path)
        assert want != path.read_bytes() or b"fp16" not in want
        out = ctypes.create_string_buffer(2 * len(want))
        size = internals.test_widened(str(path).encode(), out, ctypes.c_size_t(len(out)))
        assert out.raw[:size] == want
        (tmp_path / "cut.onnx").write_bytes(path.read_bytes()[:-3])
        assert (
            internals.test_widened(
                str(tmp_path / "cut.onnx").encode(), out, ctypes.c_size_t(len(out))
            )
            == 0
        )


def test_context_models_are_read_only_as_they_were_written(internals, tmp_path, monkeypatch):
    """An EPContext model is an engine, which runs as code: without this user's seal, changed, or
    where others may change it, it is not read.
    """
    for name in ("mine", "other"):
        (tmp_path / name).write_bytes(name.ljust(32).encode())
    monkeypatch.setenv("RIS_PLAN_KEY", str(tmp_path / "mine"))
    folder = tmp_path / "cache"
    folder.mkdir()

    def context(action="-", graph_hash="00", built_for="onnxruntime 1.31.1"):
        path = ctypes.create_string_buffer(4096)
        arguments = (
            str(folder).encode(),
            graph_hash.encode(),
            built_for.encode(),
            ctypes.c_char(action.encode()),
        )
        whole = internals.test_context(*arguments, path)
        return bool(whole), Path(path.value.decode())

    whole, path = context()
    assert not whole
    path.write_bytes(b"engine")
    path.chmod(0o666)
    assert not context()[0]
    assert context("s") == (True, path)
    assert path.stat().st_mode & 0o022 == 0
    assert context()[0]
    assert context(graph_hash="01")[1] != path
    assert context(built_for="onnxruntime 1.32.0")[1] != path

    path.chmod(0o664)
    assert not context()[0]
    path.chmod(0o644)
    monkeypatch.setenv("RIS_PLAN_KEY", str(tmp_path / "other"))
    assert not context()[0]
    monkeypatch.setenv("RIS_PLAN_KEY", str(tmp_path / "mine"))
    assert context()[0]
    other = context(graph_hash="01")[1]
    shutil.copy(path, other)
    shutil.copy(f"{path}.seal", f"{other}.seal")
    assert not context(graph_hash="01")[0]
    other.unlink()
    Path(f"{other}.seal").unlink()

    path.write_bytes(b"another")
    assert not context()[0]
    assert context("d") == (False, path)
    assert not [*folder.iterdir()]
