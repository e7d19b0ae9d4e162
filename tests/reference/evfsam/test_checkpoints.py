"""EVF-SAM's checkpoints: official ones in every form, SAM's own file, the vocabulary."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from evfsam_helper import PRESET_OF, official_keys, released_type, save, save_empty

from checkpoint_files import refused
from ris.engines.errors import CheckpointError
from ris.reference.checkpoint import WeightFiles, inspect, load_model
from ris.reference.evfsam.config import PRESETS, Beit3Config
from ris.reference.evfsam.deterministic import deterministic_model, make_tensor
from ris.reference.evfsam.sizes import derive_config
from ris.reference.families import FAMILIES, recognise
from ris.reference.layers.encoder_sizes import SamConfig
from ris.reference.layers.encoders import build_sam

KEYS = {version: official_keys(version) for version in PRESET_OF}
TINY = {"1": PRESETS["tiny-evfsam"], "2": PRESETS["tiny-evfsam2"]}
EVFSAM = FAMILIES["evfsam"]

# what official files of version 2 have of a video's memory, and both of masked patches
DEAD = {
    "1": {"mm_extractor.beit3.vision_embed.mask_token": (1, 1, 64)},
    "2": {
        "mm_extractor.beit3.vision_embed.mask_token": (1, 1, 64),
        "visual_model.maskmem_tpos_enc": (7, 1, 1, 16),
        "visual_model.no_mem_pos_enc": (1, 1, 64),
        "visual_model.no_obj_ptr": (1, 64),
        "visual_model.mask_downsample.weight": (1, 1, 4, 4),
        "visual_model.memory_attention.norm.weight": (64,),
        "visual_model.memory_encoder.out_proj.bias": (16,),
        "visual_model.obj_ptr_proj.layers.0.bias": (64,),
        "visual_model.sam_mask_decoder.pred_obj_score_head.layers.0.bias": (64,),
    },
}

DEAD_MODULES = {
    "1": {"BEiT-3 patches": 1},
    "2": {"BEiT-3 patches": 1, "SAM 2 mask decoder": 6, "SAM 2 memory of videos": 157},
}
GIGABYTES = {"1": 2.63, "2": 3.15}  # of the released files

versions = pytest.mark.parametrize("version", PRESET_OF)


def tiny_state(version: str, config=None) -> dict[str, torch.Tensor]:
    """The tensors of a tiny checkpoint, those that no model takes among them."""
    config = config or TINY[version]
    state = deterministic_model(config, 3).state_dict()
    dead = {key: torch.from_numpy(make_tensor(key, shape)) for key, shape in DEAD[version].items()}
    return state | dead


@pytest.fixture(scope="module")
def states():
    return {version: tiny_state(version) for version in PRESET_OF}


@versions
@pytest.mark.parametrize("form", ["pytorch_model.bin", "model.safetensors"])
def test_official_keys_load(tmp_path, version, form):
    """The names, shapes and types of the released files; what is unread there, is here."""
    path, type_of = tmp_path / form, released_type(version)
    if form == "model.safetensors":
        save_empty(path, version)
        assert round(path.stat().st_size / 1e9, 2) == GIGABYTES[version]
    else:  # a number for each key
        one_each = {
            key: torch.ones((), dtype=type_of(key)).expand(one["shape"])
            for key, one in KEYS[version].items()
        }
        save(path, one_each)
    found = inspect(WeightFiles(path))
    assert found.family is EVFSAM
    assert found.config == PRESETS[PRESET_OF[version]]
    assert found.keys.fits
    assert not found.keys.absent
    assert set(found.keys.loaded) | set(found.keys.dead) == set(KEYS[version])
    unread = {key for key, one in KEYS[version].items() if one["reach"] == "-"}
    assert set(found.keys.idle) | set(found.keys.dead) == unread
    assert found.keys.dead_by_module() == DEAD_MODULES[version]


@versions
@pytest.mark.parametrize("kind", ["half", "mixed", "safetensors", "wrapped", "single"])
def test_the_same_model_comes_out(states, tmp_path, version, kind):
    """Computed in FP32, of what the file has."""
    state = states[version]
    if kind != "single":
        type_of = released_type("2" if kind == "mixed" else "1")
        state = {key: value.to(type_of(key)) for key, value in state.items()}
    name = "model.safetensors" if kind == "safetensors" else "pytorch_model.bin"
    named = {f"module.{k}": v for k, v in state.items()} if kind == "wrapped" else state
    model, found = load_model(WeightFiles(save(tmp_path / name, named)))
    assert found.config == TINY[version]
    assert set(found.keys.dead) == set(DEAD[version])
    for key, value in model.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, state[key].float()), key


@versions
@pytest.mark.parametrize("kind", ["missing", "unexpected", "shape"])
def test_wrong_ones_are_refused(states, tmp_path, version, kind):
    key = "mm_extractor.beit3.encoder.layers.1.self_attn.k_proj.B.bias"
    changed = {k: v for k, v in states[version].items() if k != key or kind != "missing"}
    if kind == "unexpected":
        changed[key.replace("bias", "biass")] = torch.zeros(3)
    if kind == "shape":
        changed[key] = torch.zeros(3)
    path = save(tmp_path / "pytorch_model.bin", changed)
    found = inspect(WeightFiles(path))
    assert found.config == TINY[version]
    with pytest.raises(CheckpointError, match=rf"keys 1 {'of another ' * (kind == 'shape')}{kind}"):
        load_model(WeightFiles(path))
    assert found.keys.problems()[0].startswith("BEiT-3: 1 ")


# --- SAM's own file ---


@pytest.fixture(scope="module")
def sam_file(tmp_path_factory):
    """A tiny SAM with other weights than the checkpoints', as segment_anything writes it."""
    config = TINY["1"]
    torch.manual_seed(1)
    sam = build_sam(config.sam, config.prompt_width, 8, config.decoder_mlp_width)
    return save(tmp_path_factory.mktemp("sam") / "sam.pth", sam.state_dict())


def without(state: dict[str, torch.Tensor], *prefixes: str) -> dict[str, torch.Tensor]:
    return {key: value for key, value in state.items() if not key.startswith(prefixes)}


@pytest.mark.parametrize("whole", [True, False])
def test_sams_encoder_may_come_from_its_own_file(states, tmp_path, sam_file, whole):
    encoder = "visual_model.image_encoder."
    state = states["1"] if whole else without(states["1"], encoder)
    path = save(tmp_path / "pytorch_model.bin", state)
    model, found = load_model(WeightFiles(path, sam=sam_file))
    theirs = torch.load(sam_file)
    for key, value in model.state_dict().items():
        own = theirs[key.removeprefix("visual_model.")] if key.startswith(encoder) else state[key]
        assert torch.equal(value, own), key
    how = (
        "in place of the checkpoint's (training leaves it as it is)"
        if whole
        else "SAM ViT (48 wide, 3 blocks); the checkpoint has none"
    )
    assert found.notes == (
        f"SAM image encoder: from sam.pth, {how}",
        "SAM prompt encoder: not from sam.pth, as the model trained its own",
        "SAM mask decoder: not from sam.pth, as the model trained its own",
    )


@pytest.mark.parametrize("part", ["prompt_encoder.no_mask_embed.", "mask_decoder."])
def test_what_was_trained_does_not_come_from_sams_file(states, tmp_path, sam_file, part):
    path = save(tmp_path / "pytorch_model.bin", without(states["1"], f"visual_model.{part}"))
    found = inspect(WeightFiles(path, sam=sam_file))
    assert found.keys.missing
    assert all(key.startswith(f"visual_model.{part}") for key in found.keys.missing)
    assert found.hints() == []
    with pytest.raises(CheckpointError, match="missing"):
        load_model(WeightFiles(path, sam=sam_file))


def test_sam_is_no_part_of_version_2(states, tmp_path, sam_file):
    path = save(tmp_path / "pytorch_model.bin", states["2"])
    assert refused(checkpoint=path, sam=sam_file) == (
        "sam.pth is SAM ViT (48 wide, 3 blocks), the checkpoint was trained with SAM 2's Hiera;"
        " give the component file that it was trained with, or none"
    )


def test_sam_2s_own_file_is_no_checkpoint_and_no_part(states, tmp_path):
    theirs = {"image_encoder.trunk.pos_embed": torch.zeros(1, 144, 7, 7)}
    torch.save({"model": theirs}, tmp_path / "sam2.pt")
    words = "is SAM 2's weights; expected"
    assert words in refused(checkpoint=tmp_path / "sam2.pt")
    path = save(tmp_path / "pytorch_model.bin", states["1"])
    assert words in refused(checkpoint=path, sam=tmp_path / "sam2.pt")


# --- sizes ---


def shapes_of(config) -> dict[str, tuple[int, ...]]:
    state = EVFSAM.empty_model(config).state_dict()
    return {key: tuple(value.shape) for key, value in state.items()}


@pytest.mark.parametrize("preset", PRESETS)
def test_sizes_are_read_off_the_shapes(preset):
    assert derive_config(shapes_of(PRESETS[preset]), {}) == PRESETS[preset]


def test_sizes_of_no_preset():
    """BEiT-3 base and SAM ViT-B, which the authors' code knows, too; and wholly other ones."""
    base = replace(
        PRESETS["evfsam"],
        preset="custom",
        sam=SamConfig(),
        beit3=Beit3Config(width=768, layers=12, heads=12, mlp_width=3072),
    )
    assert derive_config(shapes_of(base), {}) == base
    other = replace(
        TINY["1"],
        preset="custom",
        sam=replace(TINY["1"].sam, image_size=128, depth=4, global_blocks=(0, 2), window=5),
        beit3=replace(TINY["1"].beit3, image_size=96, layers=4, mlp_width=72, vocab_size=99),
        prompt_width=32,
        decoder_mlp_width=80,
    )
    assert derive_config(shapes_of(other), {}) == other
    second = replace(TINY["2"], preset="custom", beit3=other.beit3, decoder_mlp_width=80)
    assert derive_config(shapes_of(second), {}) == second


def test_heads_that_cannot_be_told_are_refused(tmp_path):
    odd = replace(TINY["1"], beit3=replace(TINY["1"].beit3, width=72, heads=3))
    with pytest.raises(CheckpointError, match="BEiT-3 is 72 wide: the number of attention heads"):
        derive_config(shapes_of(odd), {})


@pytest.mark.parametrize("name", ["patch", "blocks"])
def test_another_hiera_is_refused(states, tmp_path, name):
    state = dict(states["2"])
    trunk = "visual_model.image_encoder.trunk."
    if name == "patch":
        state[f"{trunk}pos_embed"] = torch.zeros(1, 96, 7, 7)
        sizes = "96 wide with 9 blocks"
    else:
        state[f"{trunk}blocks.9.norm1.weight"] = torch.zeros(128)
        sizes = "16 wide with 10 blocks"
    path = save(tmp_path / "pytorch_model.bin", state)
    assert refused(checkpoint=path) == (
        f"{path}: its SAM 2 is a Hiera {sizes}, whose heads and windows cannot be told from the"
        " weights; this version runs the published model, on Hiera-L; the checkpoint has to carry"
        " other sizes (its entry ris_config)"
    )


def test_a_carried_configuration_wins(states, tmp_path):
    config = replace(TINY["2"], preset="mine", max_tokens=12).to_dict()
    path = tmp_path / "pytorch_model.bin"
    torch.save({"model": states["2"], "ris_config": config}, path)
    found = inspect(WeightFiles(path))
    assert (found.config.preset, found.config.max_tokens) == ("mine", 12)
    assert found.carried_config


@pytest.mark.parametrize(
    ("part", "field", "value"),
    [
        (None, "version", "3"),
        ("hiera", "windows", [0, 0, 0, 0]),
        ("hiera", "windows", [8, 4, 14, 7]),
        ("hiera", "depths", [2]),
        ("hiera", "heads", [3, 3, 3, 3]),
        ("hiera", "heads", [1]),
        ("hiera", "image_size", 72),
        (None, "max_tokens", 2),
        (None, "max_tokens", 2000),
        ("beit3", "layers", 100000),
        ("beit3", "heads", 0),
    ],
)
def test_a_carried_configuration_that_makes_no_model_is_refused(
    states, tmp_path, part, field, value
):
    config = json.loads(json.dumps(TINY["2"].to_dict()))
    (config if part is None else config[part])[field] = value
    path = tmp_path / "pytorch_model.bin"
    torch.save({"model": states["2"], "ris_config": config}, path)
    assert str(path) in refused(checkpoint=path)


def test_families_are_told_apart(states):
    """SAM and the projector are in other models' files, too, under the same names."""
    for version, state in states.items():
        assert recognise(state) is EVFSAM
        assert recognise(KEYS[version]) is EVFSAM
        assert recognise(without(state, "mm_extractor.")) is None


# --- the vocabulary ---


def test_a_checkpoint_needs_its_own_vocabulary(states, tmp_path):
    path = save(tmp_path / "pytorch_model.bin", states["1"])
    found = inspect(WeightFiles(path))
    assert found.vocabulary is None
    with pytest.raises(CheckpointError) as caught:
        EVFSAM.tokenizer_of(found.vocabulary, found.config, trained=True)
    assert str(caught.value) == (
        "a checkpoint of the family evfsam reads its own vocabulary, and there is no"
        " sentencepiece.bpe.model beside it; put the one that was published with the checkpoint"
        " there (ris-export takes one from elsewhere as --vocabulary)"
    )
    (tmp_path / "sentencepiece.bpe.model").write_bytes(b"")
    assert inspect(WeightFiles(path)).vocabulary == tmp_path / "sentencepiece.bpe.model"


@versions
def test_made_up_weights_have_made_up_words(version):
    tokenizer = EVFSAM.tokenizer_of(None, TINY[version], trained=False)
    first, *pieces, last = tokenizer.encode("left man").ids
    assert (first, last) == (0, 2)
    assert pieces
    assert max(tokenizer.get_vocab().values()) < TINY[version].beit3.vocab_size
    assert tokenizer.token_to_id("<pad>") == 1
    assert tokenizer.token_to_id("<unk>") == 3


def words_file(folder: Path, change) -> Path:
    """The made-up words as a tokenizer.json, changed."""
    data = json.loads(EVFSAM.tokenizer(None, TINY["1"]).to_str())
    change(data)
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(data))
    return path


def test_a_tokenizer_json_is_taken(tmp_path):
    path = words_file(tmp_path, lambda data: None)
    for version, config in TINY.items():
        own = EVFSAM.tokenizer(None, config).encode("[semantic] left man").ids
        assert EVFSAM.tokenizer(path, config).encode("[semantic] left man").ids == own, version


def plain(data: dict) -> None:
    """The added word of the multitask checkpoints goes."""
    data["added_tokens"] = [one for one in data["added_tokens"] if one["special"]]


def test_the_plain_checkpoint_of_version_2_is_refused(tmp_path):
    """Nothing but its words tells it from the multitask one."""
    path = words_file(tmp_path, plain)
    EVFSAM.tokenizer(path, TINY["1"])
    with pytest.raises(CheckpointError) as caught:
        EVFSAM.tokenizer(path, TINY["2"])
    assert str(caught.value) == (
        f"{path} has no [semantic]: it is of the plain EVF-SAM2 (evf-sam2), which makes its picture"
        " and chooses its mask in other ways than this version runs; give the multitask checkpoint"
        " (evf-sam2-multitask), with the added_tokens.json that was published with it beside the"
        " vocabulary"
    )


def no_ends(data: dict) -> None:
    data["post_processor"] = None


def swapped(data: dict) -> None:
    for one in data["added_tokens"]:
        one["id"] = {0: 1, 1: 0}.get(one["id"], one["id"])
    vocab = data["model"]["vocab"]
    vocab[0], vocab[1] = vocab[1], vocab[0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (no_ends, "it does not put <s> before and </s> behind the text"),
        (swapped, "<s> has id 1, it should be 0; <pad> has id 0, it should be 1"),
    ],
)
def test_words_that_do_not_fit_are_refused(tmp_path, change, words):
    path = words_file(tmp_path, change)
    with pytest.raises(CheckpointError, match=f"{path} does not fit the model: ") as caught:
        EVFSAM.tokenizer(path, TINY["1"])
    assert words in str(caught.value)


def test_more_words_than_embeddings_are_refused(tmp_path):
    path, small = words_file(tmp_path, plain), replace(TINY["1"].beit3, vocab_size=90)
    with pytest.raises(CheckpointError, match="the model's BEiT-3 has 90 embeddings"):
        EVFSAM.tokenizer(path, replace(TINY["1"], beit3=small))


def test_another_kind_of_tokenizer_is_refused(tmp_path):
    path = tmp_path / "tokenizer.json"
    FAMILIES["dfam"].tokenizer(None, FAMILIES["dfam"].presets["tiny"]).save(str(path))
    with pytest.raises(CheckpointError, match="it is WordPiece, BEiT-3's is Unigram"):
        EVFSAM.tokenizer(path, TINY["1"])
    path.write_text("{")
    with pytest.raises(CheckpointError, match="is not a tokenizer that can be read"):
        EVFSAM.tokenizer(path, TINY["1"])
    with pytest.raises(CheckpointError, match="is not a tokenizer that can be read"):
        EVFSAM.tokenizer(tmp_path / "none.json", TINY["1"])
