"""CLIP's own files, in everyone's layouts, give what the libraries themselves compute."""

from __future__ import annotations

import open_clip
import pytest
import torch
from safetensors.torch import save_file
from transformers import CLIPConfig, CLIPModel

from checkpoint_files import (
    CLIP_TEXT,
    CLOSE,
    clip_with_text,
    copy_of,
    refused,
    save_openai_archive,
    tiny_state,
    trained,
    without,
)
from ris.reference.checkpoint import WeightFiles, load_model

CLIP = "clip_dense.clip_model."
TEXT = ("positional_embedding", "text_projection", "transformer.", "token_embedding.", "ln_final.")


@pytest.fixture(scope="module")
def clip():
    return clip_with_text()


def without_clip(folder, *lost):
    """A checkpoint that lacks CLIP, and what else is named."""
    return trained(folder, without(tiny_state(CLIP_TEXT), CLIP, *lost))


@torch.no_grad()
def check_tokens(model, clip):
    """The model's CLIP feature against open_clip's own: the last block's output, by a hook."""
    seen = []
    last = clip.visual.transformer.resblocks[-1]
    hook = last.register_forward_hook(lambda module, args, out: seen.append(out))
    image = torch.randn(2, 3, CLIP_TEXT.clip.image_size, CLIP_TEXT.clip.image_size)
    clip.visual(image)
    hook.remove()
    torch.testing.assert_close(model.encode_clip(image), seen[0][:, 1:], **CLOSE)


def save_clip(layout, path, clip):
    state = clip.state_dict()
    if layout == "archive":
        save_openai_archive(path, copy_of(clip), CLIP_TEXT)
    elif layout == "open_clip.pt":
        torch.save(state, path)
    elif layout == "training.pt":
        wrapped = {f"module.{key}": value for key, value in state.items()}
        torch.save({"epoch": 3, "state_dict": wrapped, "optimizer": {}}, path)
    elif layout == "safetensors":
        save_file(state, path)
    elif layout == "CustomTextCLIP":
        renamed = {f"text.{k}" if k.startswith(TEXT) else k: v for k, v in state.items()}
        torch.save(renamed, path)


@pytest.mark.parametrize(
    "layout", ["archive", "open_clip.pt", "training.pt", "safetensors", "CustomTextCLIP"]
)
def test_openais_and_open_clips_layouts(clip, tmp_path, layout):
    path = tmp_path / "clip.weights"
    save_clip(layout, path, clip)
    model, inspection = load_model(WeightFiles(without_clip(tmp_path), clip=path))
    assert inspection.config == CLIP_TEXT
    assert not inspection.keys.unexpected
    found = "CLIP image tower: from clip.weights, CLIP (128 wide"
    assert any(note.startswith(found) for note in inspection.notes)
    # the archive is FP16, so is the truth
    check_tokens(model, copy_of(clip).half().float() if layout == "archive" else clip)


def test_both_towers_can_be_loaded(clip, tmp_path):
    """For training, `clip_text_tower` gives the whole CLIP; it encodes text as open_clip does."""
    torch.save(clip.state_dict(), tmp_path / "clip.pt")
    files = WeightFiles(without_clip(tmp_path), clip=tmp_path / "clip.pt")
    model, _ = load_model(files, clip_text_tower=True)
    tokens = open_clip.tokenize(["left man", "the red ball"])
    with torch.no_grad():
        got = model.clip_dense.clip_model.encode_text(tokens)
        torch.testing.assert_close(got, clip.encode_text(tokens), **CLOSE)


def hugging_face_clip(**options):
    """transformers' CLIPModel of the sizes of CLIP_TEXT."""
    sizes = CLIP_TEXT.clip
    text = {
        "hidden_size": sizes.text_width,
        "intermediate_size": 4 * sizes.text_width,
        "num_hidden_layers": sizes.text_layers,
        "num_attention_heads": sizes.text_heads,
        "vocab_size": sizes.text_vocab_size,
        "projection_dim": sizes.embed_dim,
        "eos_token_id": 49407,
    }
    vision = {
        "hidden_size": sizes.width,
        "intermediate_size": 4 * sizes.width,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "image_size": sizes.image_size,
        "patch_size": sizes.patch_size,
        "projection_dim": sizes.embed_dim,
    }
    config = CLIPConfig(
        text_config=text | options, vision_config=vision | options, projection_dim=sizes.embed_dim
    )
    torch.manual_seed(2)
    return CLIPModel(config).eval()


@pytest.mark.parametrize("layout", ["folder", "bin", "file"])
@torch.no_grad()
def test_hugging_faces_clip(tmp_path, layout):
    theirs = hugging_face_clip(hidden_act="quick_gelu")
    folder = tmp_path / "clip"
    theirs.save_pretrained(folder)
    if layout == "bin":
        (folder / "model.safetensors").unlink()
        torch.save(theirs.state_dict(), folder / "pytorch_model.bin")
    path = folder / "model.safetensors" if layout == "file" else folder
    rest = without_clip(tmp_path, "text_embeddings", "decoder.nt_embed.")
    model, _ = load_model(WeightFiles(rest, clip=path), clip_text_tower=True)
    ours = model.clip_dense.clip_model

    image = torch.randn(2, 3, 56, 56)
    vision = theirs.vision_model(image, output_hidden_states=True)
    want = vision.hidden_states[-1][:, 1:]
    torch.testing.assert_close(model.encode_clip(image), want, **CLOSE)
    want = theirs.visual_projection(vision.pooler_output)
    torch.testing.assert_close(ours.encode_image(image), want, **CLOSE)

    tokens = open_clip.tokenize(["left man", "the red ball"])
    want = theirs.text_projection(theirs.text_model(input_ids=tokens).pooler_output)
    torch.testing.assert_close(ours.encode_text(tokens), want, **CLOSE)


def test_the_activation_of_a_clip_folder_is_checked(tmp_path):
    hugging_face_clip(hidden_act="gelu").save_pretrained(tmp_path / "clip")
    message = refused(checkpoint=without_clip(tmp_path), clip=tmp_path / "clip")
    assert "config.json: this CLIP uses 'gelu', the model runs OpenAI's QuickGELU" in message


def test_another_clip_than_the_one_trained_with(clip, tmp_path):
    path = tmp_path / "clip.pt"
    torch.save(clip.state_dict(), path)
    message = refused(checkpoint=trained(tmp_path, tiny_state()), clip=path)
    assert message.startswith(
        "clip.pt is CLIP (128 wide, 2 blocks, 56 pixels), the checkpoint was trained with CLIP (64"
    )

    stripped = trained(tmp_path, without(tiny_state(), CLIP), "stripped.pth")
    message = refused(checkpoint=stripped, clip=path)
    assert "the checkpoint's PWAM takes 64 channels" in message
