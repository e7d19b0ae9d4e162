"""A weight file in another's place: the message says what it is and where it belongs."""

from __future__ import annotations

import pytest
import torch

from checkpoint_files import (
    CLIP_TEXT,
    below,
    clip_with_text,
    refused,
    save_half,
    save_openai_archive,
    tiny_state,
    trained,
)

WRONG = {
    ("sam", "clip.pt"): (
        "given as --sam-checkpoint, is CLIP's weights; expected SAM's weights in Meta's layout"
        " (sam_vit_b_01ec64.pth); give it as --clip-checkpoint"
    ),
    ("sam", "archive.pt"): "is CLIP's weights; expected SAM's weights",
    ("sam", "trained.pth"): (
        "is a checkpoint of the whole model; expected SAM's weights in Meta's layout "
        "(sam_vit_b_01ec64.pth); give it as --checkpoint"
    ),
    ("clip", "sam.pth"): (
        "is SAM's weights in Meta's layout; expected CLIP's weights (OpenAI's, open_clip's or "
        "transformers' layout); give it as --sam-checkpoint"
    ),
    ("clip", "bert.safetensors"): (
        "is BERT's weights; expected CLIP's weights (OpenAI's, open_clip's or "
        "transformers' layout); give its folder as --bert"
    ),
    ("checkpoint", "sam.pth"): (
        "is SAM's weights in Meta's layout; expected a checkpoint of the whole model"
    ),
    ("checkpoint", "archive.pt"): "is CLIP's weights; expected a checkpoint of the whole model",
    ("checkpoint", "other.pth"): (
        "is something unknown (its first keys are backbone.fc.weight); expected a "
        "checkpoint of the whole model; it cannot be used here"
    ),
}
"""(option, file given for it) -> part of the sentence."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One file of each kind."""
    folder = tmp_path_factory.mktemp("files")
    state, clip = tiny_state(), clip_with_text()
    trained(folder, state)
    torch.save(below(state, "sam."), folder / "sam.pth")
    torch.save(clip.state_dict(), folder / "clip.pt")
    save_openai_archive(folder / "archive.pt", clip, CLIP_TEXT)
    save_half(folder / "bert.safetensors", below(state, "text_encoder."))
    torch.save({"backbone.fc.weight": torch.zeros(3, 3)}, folder / "other.pth")
    return folder


@pytest.mark.parametrize(("option", "name"), list(WRONG))
def test_files_in_each_others_place(folder, option, name):
    files = {"checkpoint": folder / "trained.pth"} | {option: folder / name}
    assert WRONG[option, name] in refused(**files)
