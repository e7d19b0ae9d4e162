"""The C ABI of libris through ctypes, as any other language would call it."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path

import numpy as np
import pytest

RIS_ERROR_BUNDLE, RIS_ERROR_ENGINE = 3, 4
MAX_TOKENS = 35
"""Of the rows that `tokenize` gives."""

REPO = Path(__file__).resolve().parents[1]

SCENES = (20, pytest.param(100, marks=pytest.mark.full))
"""How many drawn scenes both are asked about."""


def run(*command, **options):
    """Runs a command, and fails with what it printed."""
    done = subprocess.run(
        [str(c) for c in command], capture_output=True, text=True, check=False, **options
    )
    assert done.returncode == 0, f"{command[0]} failed:\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
    return done.stdout


def pointer(array):
    """An array's memory, for ctypes."""
    assert array.flags.c_contiguous
    return array.ctypes.data_as(ctypes.c_void_p)


def tokenize(internals, path, texts, pad_id=0, end_id=None):
    """The ids by libris [N, T], -1 for what is refused, and the notes of each."""
    encoded = [text.encode() for text in texts]
    ends = np.cumsum([len(e) for e in encoded]).astype(np.uint64)
    ids = np.zeros((len(texts), MAX_TOKENS), np.int32)
    room = 1 << 22
    lines = ctypes.create_string_buffer(room)
    count = ctypes.c_size_t(len(texts))
    internals.test_tokenize(
        str(path).encode(),
        MAX_TOKENS,
        pad_id,
        -1 if end_id is None else end_id,
        b"".join(encoded),
        pointer(ends),
        count,
        pointer(ids),
        lines,
        ctypes.c_size_t(room),
    )
    return ids, lines.value.decode(errors="replace")


class Answer(ctypes.Structure):
    """ris_answer."""

    _fields_ = [
        ("struct_size", ctypes.c_size_t),
        ("mask", ctypes.POINTER(ctypes.c_uint8)),
        ("logits", ctypes.POINTER(ctypes.c_float)),
        ("notes", ctypes.c_char_p),
        ("width", ctypes.c_int32),
        ("height", ctypes.c_int32),
        ("logits_width", ctypes.c_int32),
        ("logits_height", ctypes.c_int32),
        ("is_no_target", ctypes.c_int32),
        ("reserved", ctypes.c_int32),
        ("no_target", ctypes.c_double),
        ("score", ctypes.c_double),
    ]


class Options(ctypes.Structure):
    """ris_options."""

    _fields_ = [
        ("struct_size", ctypes.c_size_t),
        ("providers", ctypes.c_char_p),
        ("engine_cache", ctypes.c_char_p),
        ("device_id", ctypes.c_int32),
        ("threads", ctypes.c_int32),
        ("strict", ctypes.c_int32),
        ("verify", ctypes.c_int32),
        ("max_expressions", ctypes.c_int32),
        ("reserved", ctypes.c_int32),
    ]


class AskOptions(ctypes.Structure):
    """ris_ask_options."""

    _fields_ = [
        ("struct_size", ctypes.c_size_t),
        ("categories", ctypes.POINTER(ctypes.c_char_p)),
        ("no_target_threshold", ctypes.c_double),
        ("draws", ctypes.c_int32),
        ("use_seed", ctypes.c_int32),
        ("seed", ctypes.c_int32),
        ("reserved", ctypes.c_int32),
        ("form", ctypes.c_char_p),
    ]


class Rule(ctypes.Structure):
    """libris::MaskRule."""

    _fields_ = [
        ("of_probabilities", ctypes.c_bool),
        ("bicubic", ctypes.c_int),
        ("align_corners", ctypes.c_bool),
        ("threshold", ctypes.c_float),
        ("letterbox", ctypes.c_int),
    ]


class Libris:
    """The C ABI of a build."""

    def __init__(self, path: Path) -> None:
        self.abi = ctypes.CDLL(str(path))
        self.abi.ris_last_error.restype = ctypes.c_char_p

    def check(self, status: int) -> None:
        assert status == 0, self.abi.ris_last_error().decode()

    def open(self, bundle: Path) -> ctypes.c_void_p:
        model = ctypes.c_void_p()
        self.check(self.abi.ris_open(str(bundle).encode(), None, ctypes.byref(model)))
        return model

    def refusal(self, bundle: Path, *, verify: bool = True) -> str:
        """The sentence with which a bundle is refused; empty where it opens."""
        options = Options(ctypes.sizeof(Options), verify=verify, max_expressions=8)
        model = ctypes.c_void_p()
        path = str(bundle).encode()
        status = self.abi.ris_open(path, ctypes.byref(options), ctypes.byref(model))
        if status == 0:
            self.check(self.abi.ris_close(model))
            return ""
        assert status in (RIS_ERROR_BUNDLE, RIS_ERROR_ENGINE)
        return self.abi.ris_last_error().decode()

    def encode_image(self, model, rgb) -> ctypes.c_void_p:
        scene = ctypes.c_void_p()
        height, width = rgb.shape[:2]
        stride = ctypes.c_size_t(rgb.strides[0])
        self.check(
            self.abi.ris_encode_image(
                model, pointer(rgb), width, height, stride, ctypes.byref(scene)
            )
        )
        return scene

    def ask(
        self, scene, expressions, categories=None, threshold=0.5, *, seed=None, draws=0, form=None
    ) -> list[dict]:
        """Each answer's fields, copied."""
        texts = (ctypes.c_char_p * len(expressions))(*[e.encode() for e in expressions])
        use_seed = seed is not None
        how = AskOptions(ctypes.sizeof(AskOptions), None, threshold, draws, use_seed, seed or 0)
        how.form = None if form is None else form.encode()
        if categories:
            how.categories = (ctypes.c_char_p * len(categories))(*[c.encode() for c in categories])
        result = ctypes.c_void_p()
        count = ctypes.c_size_t(len(expressions))
        self.check(self.abi.ris_ask(scene, texts, count, ctypes.byref(how), ctypes.byref(result)))
        return self.answers(result, len(expressions))

    def answers(self, result: ctypes.c_void_p, count: int) -> list[dict]:
        """Each answer's fields, copied; frees the result."""
        answers = []
        for i in range(count):
            answer = Answer(struct_size=ctypes.sizeof(Answer))
            self.check(self.abi.ris_result_get(result, ctypes.c_size_t(i), ctypes.byref(answer)))
            answers.append(
                {
                    "mask": (
                        np.ctypeslib.as_array(answer.mask, (answer.height, answer.width)).astype(
                            bool
                        )
                    ),
                    "logits": (
                        np.ctypeslib.as_array(
                            answer.logits, (answer.logits_height, answer.logits_width)
                        ).copy()
                    ),
                    "notes": answer.notes.decode(),
                    "no_target": answer.no_target,
                    "is_no_target": bool(answer.is_no_target),
                    "score": answer.score,
                }
            )
        self.check(self.abi.ris_free_result(result))
        return answers


def mask_iou(a, b) -> float:
    """1 for two empty masks."""
    union = (a | b).sum()
    return float((a & b).sum() / union) if union else 1.0
