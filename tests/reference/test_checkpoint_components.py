"""SAM's, CLIP's and BERT's own files, written by their own libraries, give what the library itself
computes.
"""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import save_file
from segment_anything import sam_model_registry
from transformers import BertConfig, BertForPreTraining, BertModel, CLIPConfig, CLIPModel

from checkpoint_files import (
    CLIP_TEXT,
    REAL_SAM,
    TINY,
    below,
    save_half,
    save_openai_archive,
    save_training_checkpoint,
    tiny_state,
    without,
)
from conftest import GOLDEN
from ris.engines.errors import CheckpointError
from ris.reference.categories import COCO_PANOPTIC
from ris.reference.checkpoint import WeightFiles, inspect, load_model
from ris.reference.checkpoint.category_table import category_phrases
from ris.reference.checkpoint.sizes import derive_config
from ris.reference.config import ClipConfig, SamConfig
from ris.reference.model import build_clip

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
SAM, CLIP, BERT = "sam.", "clip_dense.clip_model.", "text_encoder."


def checkpoint(folder, state, name="trained.pth"):
    return save_training_checkpoint(folder / name, state)


def refused(**files):
    with pytest.raises(CheckpointError) as caught:
        load_model(WeightFiles(**files))
    message = str(caught.value)
    assert "\n" not in message
    return message


# --- SAM ---


@pytest.fixture(scope="module")
def vit_b(tmp_path_factory):
    """Meta's ViT-B with random weights, and its file, as segment_anything writes it."""
    torch.manual_seed(0)
    sam = sam_model_registry["vit_b"]()
    torch.nn.init.normal_(sam.image_encoder.pos_embed, std=0.02)
    path = tmp_path_factory.mktemp("sam") / "sam_vit_b.pth"
    torch.save(sam.state_dict(), path)
    return sam, path


@torch.no_grad()
def test_metas_vit_b(vit_b, tmp_path):
    """Real size. The image encoder replaces the checkpoint's; the mask decoder stays the trained
    one.
    """
    sam, path = vit_b
    state = tiny_state(REAL_SAM)
    rest = checkpoint(tmp_path, state)
    model, inspection = load_model(WeightFiles(rest, sam=path))
    assert inspection.config == REAL_SAM
    loaded = model.sam.image_encoder.state_dict()
    assert all(
        torch.equal(loaded[key], value) for key, value in sam.image_encoder.state_dict().items()
    )
    image = torch.randn(1, 3, 1024, 1024)
    outputs = []
    for encoder in (model.sam.image_encoder, sam.image_encoder):
        first = copy.copy(encoder)  # two windowed blocks and a global one: the whole takes a minute
        first._modules = encoder._modules | {"blocks": encoder.blocks[:3]}
        outputs.append(first(image))
    torch.testing.assert_close(*outputs, **CLOSE)
    key = "sam.mask_decoder.mask_tokens.weight"
    torch.testing.assert_close(model.state_dict()[key], state[key])
    assert (
        inspection.notes[0]
        == "SAM image encoder: from sam_vit_b.pth, in place of the checkpoint's (training leaves it"
        " as it is)"
    )
    assert any(
        "is not the SAM that the checkpoint was trained from" in note for note in inspection.notes
    )
    assert (
        "SAM mask decoder: the checkpoint's trained tensors are kept, sam_vit_b.pth gives none"
        in inspection.notes
    )


@torch.no_grad()
def test_a_checkpoint_without_sam(vit_b, tmp_path):
    """Everything of SAM from Meta's file, said loudly: that mask decoder was never trained for
    this.
    """
    sam, path = vit_b
    rest = checkpoint(tmp_path, without(tiny_state(REAL_SAM), SAM))
    model, inspection = load_model(WeightFiles(rest, sam=path))
    embeddings, sparse = torch.randn(1, 256, 64, 64), torch.randn(1, 1, 256)
    dense = torch.randn(1, 256, 64, 64)
    want = sam.mask_decoder(
        embeddings, sam.prompt_encoder.get_dense_pe(), sparse, dense, multimask_output=False
    )[0]
    torch.testing.assert_close(model.decode_masks(embeddings, dense, sparse), want, **CLOSE)
    [warning] = [note for note in inspection.notes if note.startswith("WARNING")]
    assert (
        warning
        == "WARNING: SAM mask decoder is sam_vit_b.pth's, untrained for this task: the checkpoint"
        " has none"
    )


def test_a_checkpoint_without_frozen_tensors(vit_b, tmp_path):
    """Some people save only what they train; a component file gives each part what it lacks, no
    more.
    """
    path = vit_b[1]
    state = tiny_state(REAL_SAM)
    frozen = (
        "sam.image_encoder.",
        "sam.prompt_encoder.point_embeddings.",
        "sam.mask_decoder.iou_token",
    )
    model, inspection = load_model(
        WeightFiles(checkpoint(tmp_path, without(state, *frozen)), sam=path)
    )
    assert (
        "SAM mask decoder: 1 of 120 tensors from sam_vit_b.pth, the rest from the checkpoint"
        in inspection.notes
    )
    key = "sam.mask_decoder.output_upscaling.0.weight"
    torch.testing.assert_close(model.state_dict()[key], state[key])


@pytest.mark.parametrize(
    ("name", "width", "depth", "heads", "blocks"),
    [
        ("vit_b", 768, 12, 12, (2, 5, 8, 11)),
        ("vit_l", 1024, 24, 16, (5, 11, 17, 23)),
        ("vit_h", 1280, 32, 16, (7, 15, 23, 31)),
    ],
)
def test_every_size_of_sam_is_read_off_its_shapes(name, width, depth, heads, blocks):
    with torch.device("meta"):
        state = sam_model_registry[name]().state_dict()
    config = derive_config({f"sam.{key}": tuple(value.shape) for key, value in state.items()})
    assert config.sam == SamConfig(width=width, depth=depth, heads=heads, global_blocks=blocks)
    assert (config.prompt_width, config.decoder_mlp_width) == (256, 2048)


def test_another_sam_than_the_one_trained_with(vit_b, tmp_path):
    with torch.device("meta"):
        large = sam_model_registry["vit_l"]().state_dict()
    torch.save(
        {k: torch.zeros((), dtype=v.dtype).expand(v.shape) for k, v in large.items()},
        tmp_path / "sam_l.pth",
    )
    message = refused(
        checkpoint=checkpoint(tmp_path, tiny_state(REAL_SAM)), sam=tmp_path / "sam_l.pth"
    )
    assert (
        message
        == "sam_l.pth is SAM ViT-L (1024 wide, 24 blocks), the checkpoint was trained with SAM"
        " ViT-B (768 wide, 12 blocks); give the component file that it was trained with, or none"
    )
    rest = checkpoint(tmp_path, without(tiny_state(TINY), "sam.image_encoder."), "narrow.pth")
    assert "the checkpoint's SAM mask decoder takes 64 channels" in refused(
        checkpoint=rest, sam=vit_b[1]
    )


# --- CLIP ---


@pytest.fixture(scope="module")
def clip():
    torch.manual_seed(1)
    return build_clip(CLIP_TEXT.clip).eval()


def hugging_face_clip(clip_config: ClipConfig, **options):
    sizes = clip_config
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


def clip_checkpoint(folder, *lost):
    return checkpoint(folder, without(tiny_state(CLIP_TEXT), CLIP, *lost))


@torch.no_grad()
def same_tokens(model, clip, tolerance=CLOSE):
    """The model's CLIP feature against open_clip's own: the last block's output, by a hook."""
    seen = []
    hook = clip.visual.transformer.resblocks[-1].register_forward_hook(
        lambda m, a, out: seen.append(out)
    )
    image = torch.randn(2, 3, CLIP_TEXT.clip.image_size, CLIP_TEXT.clip.image_size)
    clip.visual(image)
    hook.remove()
    torch.testing.assert_close(model.encode_clip(image), seen[0][:, 1:], **tolerance)


@pytest.mark.parametrize(
    "layout", ["archive", "open_clip.pt", "training.pt", "safetensors", "CustomTextCLIP"]
)
def test_openais_and_open_clips_layouts(clip, tmp_path, layout):
    path = tmp_path / "clip.weights"
    state, want = clip.state_dict(), clip
    if layout == "archive":
        save_openai_archive(path, build_and_fill(clip), CLIP_TEXT)
        want = build_and_fill(clip).half().float()  # the archive is FP16, so is the truth
    elif layout == "open_clip.pt":
        torch.save(state, path)
    elif layout == "training.pt":
        torch.save(
            {
                "epoch": 3,
                "state_dict": {f"module.{k}": v for k, v in state.items()},
                "optimizer": {},
            },
            path,
        )
    elif layout == "safetensors":
        save_file(state, path)
    else:
        text = (
            "positional_embedding",
            "text_projection",
            "transformer.",
            "token_embedding.",
            "ln_final.",
        )
        torch.save({(f"text.{k}" if k.startswith(text) else k): v for k, v in state.items()}, path)
    model, inspection = load_model(WeightFiles(clip_checkpoint(tmp_path), clip=path))
    assert inspection.config == replace(CLIP_TEXT)
    assert not inspection.keys.unexpected
    assert any(
        note.startswith("CLIP image tower: from clip.weights, CLIP (128 wide")
        for note in inspection.notes
    )
    same_tokens(model, want)


def build_and_fill(clip):
    copy = build_clip(CLIP_TEXT.clip).eval()
    copy.load_state_dict(clip.state_dict())
    return copy


def test_both_towers_can_be_loaded(clip, tmp_path):
    """For training: `clip_text_tower` gives the whole CLIP, and it encodes text as open_clip
    does.
    """
    torch.save(clip.state_dict(), tmp_path / "clip.pt")
    model, _ = load_model(
        WeightFiles(clip_checkpoint(tmp_path), clip=tmp_path / "clip.pt"), clip_text_tower=True
    )
    tokens = open_clip.tokenize(["left man", "the red ball"])
    with torch.no_grad():
        torch.testing.assert_close(
            model.clip_dense.clip_model.encode_text(tokens), clip.encode_text(tokens), **CLOSE
        )


@pytest.mark.parametrize("layout", ["folder", "bin", "file"])
@torch.no_grad()
def test_hugging_faces_clip(tmp_path, layout):
    theirs = hugging_face_clip(CLIP_TEXT.clip, hidden_act="quick_gelu")
    folder = tmp_path / "clip"
    theirs.save_pretrained(folder)
    if layout == "bin":
        (folder / "model.safetensors").unlink()
        torch.save(theirs.state_dict(), folder / "pytorch_model.bin")
    path = folder / "model.safetensors" if layout == "file" else folder
    rest = clip_checkpoint(tmp_path, "text_embeddings", "decoder.nt_embed.")
    model, _ = load_model(WeightFiles(rest, clip=path), clip_text_tower=True)
    image = torch.randn(2, 3, 56, 56)
    want = theirs.vision_model(image, output_hidden_states=True).hidden_states[-1][:, 1:]
    torch.testing.assert_close(model.encode_clip(image), want, **CLOSE)
    tokens = open_clip.tokenize(["left man", "the red ball"])
    got = model.clip_dense.clip_model.encode_text(tokens)
    features = theirs.text_projection(theirs.text_model(input_ids=tokens).pooler_output)
    torch.testing.assert_close(got, features, **CLOSE)
    image_features = theirs.visual_projection(theirs.vision_model(image).pooler_output)
    torch.testing.assert_close(
        model.clip_dense.clip_model.encode_image(image), image_features, **CLOSE
    )


def test_the_activation_of_a_clip_folder_is_checked(tmp_path):
    hugging_face_clip(CLIP_TEXT.clip, hidden_act="gelu").save_pretrained(tmp_path / "clip")
    message = refused(checkpoint=clip_checkpoint(tmp_path), clip=tmp_path / "clip")
    assert "config.json: this CLIP uses gelu, the model runs OpenAI's QuickGELU" in message


def test_another_clip_than_the_one_trained_with(clip, tmp_path):
    torch.save(clip.state_dict(), tmp_path / "clip.pt")
    message = refused(checkpoint=checkpoint(tmp_path, tiny_state()), clip=tmp_path / "clip.pt")
    assert message.startswith(
        "clip.pt is CLIP (128 wide, 2 blocks, 56 pixels), the checkpoint was trained with CLIP (64"
    )
    stripped = checkpoint(tmp_path, without(tiny_state(), CLIP), "stripped.pth")
    assert "the checkpoint's PWAM takes 64 channels" in refused(
        checkpoint=stripped, clip=tmp_path / "clip.pt"
    )


# --- the category table ---


def test_the_table_is_computed_from_a_text_tower(clip, tmp_path):
    torch.save(clip.state_dict(), tmp_path / "clip.pt")
    config = CLIP_TEXT.with_category_query()
    state = without(tiny_state(config), CLIP)
    for name, lost in (("zeros", {"text_embeddings": torch.zeros(134, 48)}), ("absent", None)):
        kept = {**state, **lost} if lost else without(state, "text_embeddings")
        path = checkpoint(tmp_path, kept, f"{name}.pth")
        model, inspection = load_model(WeightFiles(path, clip=tmp_path / "clip.pt"))
        assert any(
            "category table: computed with the text tower of clip.pt" in note
            for note in inspection.notes
        )
        with torch.no_grad():
            person = clip.encode_text(open_clip.tokenize(["person"]))[0]
            tree = clip.encode_text(open_clip.tokenize(["branch", "tree", "bush", "leaves"])).mean(
                0
            )
        table = model.text_embeddings
        torch.testing.assert_close(table[0], person / person.norm(), **CLOSE)
        torch.testing.assert_close(
            table[COCO_PANOPTIC.index("tree-merged")], tree / tree.norm(), **CLOSE
        )
        assert table.shape == (134, 48)


def test_the_trained_table_wins(clip, tmp_path):
    torch.save(clip.state_dict(), tmp_path / "clip.pt")
    state = without(tiny_state(CLIP_TEXT.with_category_query()), CLIP)
    model, _ = load_model(WeightFiles(checkpoint(tmp_path, state), clip=tmp_path / "clip.pt"))
    torch.testing.assert_close(model.text_embeddings, state["text_embeddings"])


def test_without_a_table_the_message_says_what_brings_it(tmp_path):
    state = tiny_state(TINY.with_category_query())
    with pytest.raises(CheckpointError) as caught:
        load_model(WeightFiles(checkpoint(tmp_path, without(state, "text_embeddings"))))
    assert "category table: 1 missing: text_embeddings" in str(caught.value)
    assert "category table: --clip-checkpoint with a text tower would bring it" in str(caught.value)


def test_phrases_are_plain_words_and_tokens_are_the_golden_ones():
    assert category_phrases("dining table") == ("dining table",)
    assert category_phrases("sky-other-merged") == ("sky",)
    assert category_phrases("floor-wood") == ("floor wood",)
    assert category_phrases("window-blind") == ("window blind",)
    golden = np.load(GOLDEN / "module_category_text.npz")
    for name in ("person", "tree-merged", "background"):
        np.testing.assert_array_equal(
            open_clip.tokenize(list(category_phrases(name))), golden[f"tokens_{name}"]
        )


# --- BERT ---


def bert_config():
    bert = TINY.bert
    return BertConfig(
        vocab_size=bert.vocab_size,
        hidden_size=bert.width,
        num_hidden_layers=bert.layers,
        num_attention_heads=bert.heads,
        intermediate_size=bert.mlp_width,
        max_position_embeddings=bert.positions,
    )


@pytest.fixture(params=["BertModel", "BertForPreTraining", "old names"])
def bert_folder(request, tmp_path):
    torch.manual_seed(4)
    kind = BertModel if request.param == "BertModel" else BertForPreTraining
    theirs = kind(bert_config()).eval()
    folder = tmp_path / "bert"
    theirs.save_pretrained(folder)
    if request.param == "old names":  # bert-base-uncased's own pytorch_model.bin
        (folder / "model.safetensors").unlink()
        old = {
            k.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
                "LayerNorm.bias", "LayerNorm.beta"
            ): v
            for k, v in theirs.state_dict().items()
        }
        assert any("gamma" in key for key in old)
        torch.save(old, folder / "pytorch_model.bin")
    (folder / "vocab.txt").write_text("[PAD]\n")
    return theirs if kind is BertModel else theirs.bert, folder


@torch.no_grad()
def test_hugging_faces_bert(bert_folder, tmp_path):
    theirs, folder = bert_folder
    rest = checkpoint(tmp_path, without(tiny_state(), BERT))
    model, inspection = load_model(WeightFiles(rest, bert=folder))
    assert inspection.vocabulary == folder / "vocab.txt"
    assert [n for n in inspection.notes if n.startswith("WARNING: BERT is ")]
    ids = torch.zeros(1, 35, dtype=torch.long)
    ids[0, :4] = torch.tensor([2, 150, 160, 3])
    want = theirs(ids, attention_mask=(ids != 0).long()).last_hidden_state
    torch.testing.assert_close(model.encode_words(ids)[0], want, **CLOSE)


def test_the_trained_bert_wins(bert_folder, tmp_path):
    state = tiny_state()
    model, inspection = load_model(WeightFiles(checkpoint(tmp_path, state), bert=bert_folder[1]))
    key = "text_encoder.embeddings.word_embeddings.weight"
    torch.testing.assert_close(model.state_dict()[key], state[key])
    [note] = inspection.notes
    assert note.startswith("BERT: the checkpoint's trained tensors are kept")
    assert inspection.vocabulary is not None


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"model_type": "roberta"}, "has model_type 'roberta', the model's BERT has 'bert'"),
        ({"hidden_act": "relu"}, "has hidden_act 'relu', the model's BERT has 'gelu'"),
    ],
)
def test_another_bert(tmp_path, change, sentence):
    BertModel(bert_config()).save_pretrained(tmp_path / "bert")
    path = tmp_path / "bert" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert sentence in refused(
        checkpoint=checkpoint(tmp_path, tiny_state()), bert=tmp_path / "bert"
    )


def test_bert_folders_that_cannot_be_used(tmp_path):
    rest = checkpoint(tmp_path, tiny_state())
    (tmp_path / "empty").mkdir()
    assert "holds none of model.safetensors" in refused(checkpoint=rest, bert=tmp_path / "empty")
    assert "is no folder; --bert takes the folder" in refused(checkpoint=rest, bert=rest)
    (tmp_path / "cased").mkdir()
    (tmp_path / "cased" / "vocab.txt").write_text("[PAD]\n")
    (tmp_path / "cased" / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    assert "holds a cased BERT" in refused(checkpoint=rest, bert=tmp_path / "cased")
    (tmp_path / "cased" / "tokenizer_config.json").write_text("{")
    assert "cannot be read as JSON" in refused(checkpoint=rest, bert=tmp_path / "cased")
    (tmp_path / "cased" / "tokenizer_config.json").unlink()
    assert (
        load_model(WeightFiles(rest, bert=tmp_path / "cased"))[1].vocabulary
        == tmp_path / "cased" / "vocab.txt"
    )


# --- the wrong file in the wrong place ---


def test_files_in_each_others_place(clip, tmp_path):
    state = tiny_state()
    whole = checkpoint(tmp_path, state)
    torch.save(below(state, SAM), tmp_path / "sam.pth")
    torch.save(clip.state_dict(), tmp_path / "clip.pt")
    save_half(tmp_path / "bert.safetensors", below(state, BERT))
    torch.save({"backbone.fc.weight": torch.zeros(3, 3)}, tmp_path / "other.pth")
    save_openai_archive(tmp_path / "archive.pt", build_and_fill(clip), CLIP_TEXT)
    wrong = {
        ("sam", "clip.pt"): (
            "given as --sam-checkpoint, is CLIP's weights; expected SAM's weights in Meta's layout "
            "(sam_vit_b_01ec64.pth); give it as --clip-checkpoint"
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
        (
            "checkpoint",
            "sam.pth",
        ): "is SAM's weights in Meta's layout; expected a checkpoint of the whole model",
        ("checkpoint", "archive.pt"): "is CLIP's weights; expected a checkpoint of the whole model",
        ("checkpoint", "other.pth"): (
            "is something unknown (its first keys are backbone.fc.weight); expected a "
            "checkpoint of the whole model; it cannot be used here"
        ),
    }
    for (option, name), sentence in wrong.items():
        files = {"checkpoint": whole} | {option: tmp_path / name}
        assert sentence in refused(**files), (option, name)


def test_component_files_alone_make_no_model(vit_b):
    inspection = inspect(WeightFiles(sam=vit_b[1]))
    assert not inspection.keys.fits
    assert inspection.hints() == [
        "component files alone make no model: give the training checkpoint as --checkpoint"
    ]
    with pytest.raises(CheckpointError, match="no weight files were given"):
        inspect(WeightFiles())
