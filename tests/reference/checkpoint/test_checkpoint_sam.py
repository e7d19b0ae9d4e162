"""SAM's own file, written by segment_anything, gives what the library itself computes."""

from __future__ import annotations

import copy

import pytest
import torch
from segment_anything import sam_model_registry

from checkpoint_files import CLOSE, REAL_SAM, refused, tiny_state, trained, without
from ris.engines.errors import CheckpointError
from ris.reference.checkpoint import WeightFiles, inspect, load_model
from ris.reference.dfam.sizes import derive_config
from ris.reference.layers.encoder_sizes import SamConfig


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
    """Real size: the image encoder replaces the checkpoint's, the mask decoder stays trained."""
    sam, path = vit_b
    state = tiny_state(REAL_SAM)
    rest = trained(tmp_path, state)
    model, inspection = load_model(WeightFiles(rest, sam=path))
    assert inspection.config == REAL_SAM

    loaded = model.sam.image_encoder.state_dict()
    for name, value in sam.image_encoder.state_dict().items():
        assert torch.equal(loaded[name], value), name
    image = torch.randn(1, 3, 1024, 1024)
    outputs = []
    for encoder in (model.sam.image_encoder, sam.image_encoder):
        first = copy.copy(encoder)  # two windowed blocks and a global one: the whole takes a minute
        first._modules = encoder._modules | {"blocks": encoder.blocks[:3]}
        outputs.append(first(image))
    torch.testing.assert_close(*outputs, **CLOSE)

    key = "sam.mask_decoder.mask_tokens.weight"
    torch.testing.assert_close(model.state_dict()[key], state[key])
    first, *others = inspection.notes
    assert first == (
        "SAM image encoder: from sam_vit_b.pth, in place of the checkpoint's (training leaves it"
        " as it is)"
    )
    kept = "SAM mask decoder: the checkpoint's trained tensors are kept, sam_vit_b.pth gives none"
    assert kept in others
    assert "is not the SAM that the checkpoint was trained from" in " ".join(others)


@torch.no_grad()
def test_a_checkpoint_without_sam(vit_b, tmp_path):
    """Everything of SAM from Meta's file, with a warning: that mask decoder is not trained."""
    sam, path = vit_b
    rest = trained(tmp_path, without(tiny_state(REAL_SAM), "sam."))
    model, inspection = load_model(WeightFiles(rest, sam=path))

    embeddings, sparse = torch.randn(1, 256, 64, 64), torch.randn(1, 1, 256)
    dense = torch.randn(1, 256, 64, 64)
    want = sam.mask_decoder(
        embeddings, sam.prompt_encoder.get_dense_pe(), sparse, dense, multimask_output=False
    )[0]
    torch.testing.assert_close(model.decode_masks(embeddings, dense, sparse), want, **CLOSE)

    assert [note for note in inspection.notes if note.startswith("WARNING")] == [
        "WARNING: SAM mask decoder is sam_vit_b.pth's, untrained for this task: the checkpoint has"
        " none"
    ]


def test_a_checkpoint_without_frozen_tensors(vit_b, tmp_path):
    """Some save only what they train; a component file gives each part just what it lacks."""
    state = tiny_state(REAL_SAM)
    frozen = (
        "sam.image_encoder.",
        "sam.prompt_encoder.point_embeddings.",
        "sam.mask_decoder.iou_token",
    )
    rest = trained(tmp_path, without(state, *frozen))
    model, inspection = load_model(WeightFiles(rest, sam=vit_b[1]))
    filled = "SAM mask decoder: 1 of 120 tensors from sam_vit_b.pth, the rest from the checkpoint"
    assert filled in inspection.notes
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
    one_number_each = {
        key: torch.zeros((), dtype=value.dtype).expand(value.shape) for key, value in large.items()
    }
    path = tmp_path / "sam_l.pth"
    torch.save(one_number_each, path)
    assert refused(checkpoint=trained(tmp_path, tiny_state(REAL_SAM)), sam=path) == (
        "sam_l.pth is SAM ViT-L (1024 wide, 24 blocks), the checkpoint was trained with SAM"
        " ViT-B (768 wide, 12 blocks); give the component file that it was trained with, or none"
    )

    rest = trained(tmp_path, without(tiny_state(), "sam.image_encoder."), "narrow.pth")
    message = refused(checkpoint=rest, sam=vit_b[1])
    assert "the checkpoint's SAM mask decoder takes 64 channels" in message


def test_component_files_alone_make_no_model(vit_b):
    inspection = inspect(WeightFiles(sam=vit_b[1]))
    assert not inspection.keys.fits
    assert inspection.hints() == [
        "component files alone make no model: give the training checkpoint as --checkpoint"
    ]
    with pytest.raises(CheckpointError, match="no weight files were given"):
        inspect(WeightFiles())
