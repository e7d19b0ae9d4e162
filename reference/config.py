"""What a model is made of: frozen dataclasses, and the presets that name the usual ones. No torch
in here.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal

QueryKind = Literal["category", "cls"]
NoTargetHead = Literal["none", "linear", "mlp"]
DenseGrid = Literal["clip", "doubled"]
DenseInterpolation = Literal["bicubic", "bilinear"]
SparseBranchKind = Literal["feed_forward", "additive"]


@dataclass(frozen=True)
class SamConfig:
    """SAM's ViT image encoder (docs/reference/models/dfam.md 3). Sizes in pixels; `window` and the
    grid in patches.
    """

    image_size: int = 1024
    patch_size: int = 16
    width: int = 768
    depth: int = 12
    heads: int = 12
    window: int = 14
    global_blocks: tuple[int, ...] = (2, 5, 8, 11)

    @property
    def grid(self) -> int:
        return self.image_size // self.patch_size


@dataclass(frozen=True)
class ClipConfig:
    """CLIP's visual tower and the widths of its text tower (docs/reference/models/dfam.md 4 and
    15).
    """

    image_size: int = 336
    patch_size: int = 14
    width: int = 1024
    layers: int = 24
    heads: int = 16
    embed_dim: int = 768
    text_width: int = 768
    text_layers: int = 12
    text_heads: int = 12
    text_vocab_size: int = 49408

    @property
    def grid(self) -> int:
        return self.image_size // self.patch_size


@dataclass(frozen=True)
class BertSpec:
    """BERT without pooler (docs/reference/models/dfam.md 5)."""

    vocab_size: int = 30522
    width: int = 768
    layers: int = 12
    heads: int = 12
    mlp_width: int = 3072
    positions: int = 512


@dataclass(frozen=True)
class ModelConfig:
    """A referring-image-segmentation model, whole.

    Where the paper's supplement and its released code differ (docs/reference/models/dfam.md 19), a
    field says which is meant; the defaults are the released code. `with_supplement` gives the
    supplement's choices.

    query: what the sparse branch asks with: the category's CLIP text vector, or BERT's [CLS] state.
    no_target: the head that says "no such object": none, one linear layer, or the code's two-layer
    MLP. dense_grid: the dense prompt's grid: CLIP's own (24 of 336 px) or twice it (48).
    dense_interpolation: how the dense prompt is resized to SAM's grid. sparse_branch:
    "feed_forward" is LN(q + MHA) and a post-norm feed-forward layer; "additive" is LN(q) + MHA.
    """

    preset: str = "vitb-vitl336"
    query: QueryKind = "cls"
    no_target: NoTargetHead = "mlp"
    dense_grid: DenseGrid = "doubled"
    dense_interpolation: DenseInterpolation = "bicubic"
    sparse_branch: SparseBranchKind = "feed_forward"
    sam: SamConfig = field(default_factory=SamConfig)
    clip: ClipConfig = field(default_factory=ClipConfig)
    bert: BertSpec = field(default_factory=BertSpec)
    prompt_width: int = 256
    pyramid_width: int = 768
    heads: int = 8
    deformable_layers: int = 6
    deformable_points: int = 4
    ffn_width: int = 1024
    dfam_queries: int = 100
    decoder_mlp_width: int = 2048
    max_tokens: int = 35
    categories: int = 134

    @property
    def dense_prompt_grid(self) -> int:
        return self.clip.grid * (2 if self.dense_grid == "doubled" else 1)

    @property
    def mask_size(self) -> int:
        """Side of the low-resolution mask logits: SAM's decoder upsamples its grid four times."""
        return self.sam.grid * 4

    def with_category_query(self) -> ModelConfig:
        """The "refcoco" variant: category query, no no-target head (docs/reference/models/dfam.md
        1).
        """
        return replace(self, query="category", no_target="none")

    def with_supplement(self) -> ModelConfig:
        """The supplement's own words instead of the released code (docs/reference/design.md,
        Presets).
        """
        head: NoTargetHead = "none" if self.no_target == "none" else "linear"
        return replace(
            self,
            dense_grid="clip",
            dense_interpolation="bilinear",
            sparse_branch="additive",
            no_target=head,
        )

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ModelConfig:
        """The inverse of `to_dict` (JSON lists become tuples). Raises TypeError for an unknown
        field.
        """
        parts = {"sam": SamConfig, "clip": ClipConfig, "bert": BertSpec}
        known = {f.name for f in fields(cls)}
        unknown = sorted(set(data) - known)
        if unknown:
            raise TypeError(f"unknown model configuration fields: {', '.join(unknown)}")
        values: dict[str, Any] = {}
        for name, value in data.items():
            if name in parts:
                value = parts[name](
                    **{k: tuple(v) if isinstance(v, list) else v for k, v in value.items()}
                )
            values[name] = value
        return cls(**values)


def _tiny() -> ModelConfig:
    return ModelConfig(
        preset="tiny",
        sam=SamConfig(image_size=256, width=48, depth=3, heads=3, global_blocks=(1,)),
        clip=ClipConfig(
            image_size=84,
            width=64,
            layers=3,
            heads=2,
            embed_dim=48,
            text_width=48,
            text_layers=2,
            text_heads=2,
            text_vocab_size=512,
        ),
        bert=BertSpec(vocab_size=320, width=48, layers=2, heads=3, mlp_width=96, positions=64),
        prompt_width=64,
        pyramid_width=96,
        deformable_layers=2,
        ffn_width=128,
        dfam_queries=20,
        decoder_mlp_width=128,
    )


def _demo() -> ModelConfig:
    """What trains on two CPU cores in hours and still has every module: 256-pixel input, 128-pixel
    mask logits.
    """
    return ModelConfig(
        preset="demo",
        sam=SamConfig(
            image_size=256,
            patch_size=8,
            width=128,
            depth=6,
            heads=4,
            window=8,
            global_blocks=(2, 5),
        ),
        clip=ClipConfig(
            image_size=224,
            patch_size=14,
            width=128,
            layers=6,
            heads=4,
            embed_dim=64,
            text_width=64,
            text_layers=1,
            text_heads=1,
            text_vocab_size=512,
        ),
        bert=BertSpec(vocab_size=256, width=128, layers=3, heads=4, mlp_width=256, positions=64),
        prompt_width=128,
        pyramid_width=96,
        heads=4,
        deformable_layers=2,
        deformable_points=2,
        ffn_width=256,
        dfam_queries=20,
        decoder_mlp_width=256,
    )


PRESETS: dict[str, ModelConfig] = {"vitb-vitl336": ModelConfig(), "tiny": _tiny(), "demo": _demo()}
