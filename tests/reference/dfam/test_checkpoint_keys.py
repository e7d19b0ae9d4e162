"""What a checkpoint's keys say: variant and sizes, what is dead, and what is wrong, all at once."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from checkpoint_files import TINY, save_training_checkpoint, tiny_state, without
from ris.engines.errors import CheckpointError
from ris.reference.checkpoint import WeightFiles, inspect, load_model
from ris.reference.checkpoint.entries import Entry
from ris.reference.checkpoint.keys import compare_keys
from ris.reference.dfam.config import PRESETS
from ris.reference.dfam.model import empty_model
from ris.reference.dfam.rules import key_rules
from ris.reference.dfam.sizes import derive_config
from ris.reference.layers.encoder_sizes import BertSpec, ClipConfig, SamConfig

FULL = PRESETS["vitb-vitl336"]
VARIANTS = {
    "cls": lambda config: config,
    "category": lambda config: config.with_category_query(),
    "supplement": lambda config: config.with_supplement(),
    "category supplement": lambda config: config.with_category_query().with_supplement(),
    "linear head": lambda config: replace(config, no_target="linear"),
}


def shapes_of(state):
    return {key: tuple(value.shape) for key, value in state.items()}


@pytest.mark.parametrize("preset", sorted(PRESETS))
@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_the_configuration_is_read_off_the_shapes(preset, variant):
    config = VARIANTS[variant](PRESETS[preset])
    for text_tower in (False, True):
        state = empty_model(config, clip_text_tower=text_tower).state_dict()
        assert derive_config(shapes_of(state)) == config


def test_sizes_of_no_preset():
    config = replace(
        FULL,
        preset="custom",
        sam=SamConfig(image_size=512, width=192, depth=2, heads=6, window=7, global_blocks=(0,)),
        clip=ClipConfig(image_size=224, patch_size=16, width=512, layers=3, heads=8, embed_dim=512),
        bert=BertSpec(vocab_size=1000, width=128, layers=1, heads=2, mlp_width=200, positions=40),
        prompt_width=128,
        pyramid_width=64,
        deformable_layers=1,
        deformable_points=2,
        ffn_width=96,
        dfam_queries=7,
        decoder_mlp_width=80,
        categories=12,
    )
    assert derive_config(shapes_of(empty_model(config).state_dict())) == config


def test_a_lost_block_is_missing_and_no_smaller_model():
    for prefix in (
        "sam.image_encoder.blocks.11.",
        "clip_dense.clip_model.visual.transformer.resblocks.23.",
        "text_encoder.encoder.layer.11.",
        "clip_pixel_decoder.transformer.encoder.layers.5.",
    ):
        state = without(empty_model(FULL).state_dict(), prefix)
        assert derive_config(shapes_of(state)) == FULL


def test_heads_that_cannot_be_told(tmp_path):
    state = tiny_state()
    key = "text_encoder.embeddings.word_embeddings.weight"
    state[key] = state[key][..., :30]
    path = save_training_checkpoint(tmp_path / "a.pth", state)
    sentence = "BERT is 30 wide: the number of attention heads cannot be told"
    with pytest.raises(CheckpointError, match=sentence):
        inspect(WeightFiles(path))


@pytest.mark.parametrize("variant", ["cls", "category"])
def test_dead_keys_are_those_of_the_model_page(golden_keys, variant):
    """Loaded, idle and dead keys are the official checkpoint's, each where keys.json has it."""

    def entry(shape, dtype=torch.float32):
        return Entry(tuple(shape), dtype, "model_final.pth", (), mapped=False)

    config = VARIANTS[variant](FULL)
    entries = {
        key: entry(golden["shape"])
        for key, golden in golden_keys.items()
        if golden[variant] != "absent"
    }
    entries["text_encoder.embeddings.position_ids"] = entry((1, 512), torch.int64)
    wanted = shapes_of(empty_model(config).state_dict())
    rules = key_rules(config)
    report = compare_keys(entries, wanted, rules)
    assert report.fits, report.problems()
    assert not report.absent
    assert len(report.loaded) + len(report.dead) == len(entries)
    assert len(entries) == (1291 if variant == "cls" else 1286)
    used = {key for key, golden in golden_keys.items() if golden[variant] not in ("-", "absent")}
    assert {key for key in wanted if not rules.is_idle(key)} == used
    assert report.dead_by_module() == {
        "CLIP text tower": 150,
        "training loss": 2,
        "BERT": 1,
        "other": 2 if variant == "cls" else 1,
    }


def test_every_dead_key_may_be_absent(tmp_path):
    """A stripped checkpoint gives the same mask: nothing that is called dead has an effect."""
    for variant in ("cls", "category"):
        config = VARIANTS[variant](TINY)
        state = tiny_state(config)
        rules = key_rules(config)
        alive = {key: value for key, value in state.items() if not rules.is_idle(key)}
        assert len(alive) < len(state) - 50
        path = save_training_checkpoint(tmp_path / "stripped.pth", alive)
        stripped, inspection = load_model(WeightFiles(path))
        assert set(inspection.keys.absent) == set(state) - set(alive)

        whole = empty_model(config)
        whole.load_state_dict(state, assign=True)
        ids = torch.zeros(1, 35, dtype=torch.long)
        ids[0, :4] = torch.tensor([2, 150, 160, 3])
        images = torch.randn(1, 3, 256, 256), torch.randn(1, 3, 84, 84)
        with torch.no_grad():
            got, want = (m(*images, ids, torch.tensor([2])) for m in (stripped, whole))
        torch.testing.assert_close(got.mask_logits, want.mask_logits, rtol=0, atol=0)
        if config.no_target != "none":
            torch.testing.assert_close(got.no_target_logits, want.no_target_logits, rtol=0, atol=0)


def test_everything_wrong_is_said_at_once(tmp_path):
    right, misspelt = "backbone_clip.simfp_3.0.", "backbone_clip.simpf_3.0."
    renamed = {key.replace(right, misspelt): value for key, value in tiny_state().items()}
    renamed = without(renamed, "text_encoder.encoder.layer.1.", "sam.mask_decoder.iou_token")
    renamed["lang_mlp.weight"] = renamed["lang_mlp.weight"][:3]
    renamed["clip_mlpl.bias"] = renamed["clip_mlpl.bias"].int()
    renamed["extra.weight"] = torch.zeros(2)
    path = save_training_checkpoint(tmp_path / "model_final.pth", renamed)

    with pytest.raises(CheckpointError) as caught:
        load_model(WeightFiles(path))
    first, *lines = str(caught.value).split("\n")
    counts = "20 missing, 4 unexpected, 2 of another shape"
    assert first == f"{path} does not make a tiny model: keys {counts}"
    assert "  SAM mask decoder: 1 missing: sam.mask_decoder.iou_token.weight" in lines
    cut = "lang_mlp.weight is [3, 48], expected [64, 48]"
    assert f"  text projection: 1 of another shape: {cut}" in lines
    whole_numbers = "clip_mlpl.bias is [64] int32, expected [64] float32"
    assert f"  category projection: 1 of another shape: {whole_numbers}" in lines
    [bert] = [line for line in lines if line.startswith("  BERT: 16 missing")]
    assert bert.endswith(", and 13 more")
    [pyramid] = [line for line in lines if line.startswith("  CLIP pyramid: 3 missing")]
    assert "simfp_3.0.weight (nearest: backbone_clip.simpf_3.0.weight)" in pyramid
    assert "  other: 1 unexpected: extra.weight" in lines
    assert "  SAM mask decoder: --sam-checkpoint (untrained for this task) would bring it" in lines
    assert len(lines) < 12
    assert all(len(line) < 400 for line in lines)
