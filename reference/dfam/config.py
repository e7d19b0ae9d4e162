"""What a model is made of: frozen dataclasses, and the presets that name the usual ones.

Nothing here needs PyTorch. Section numbers are those of docs/reference/models/dfam.md.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from ris.reference.config_data import config_from
from ris.reference.layers.encoder_sizes import BertSpec, ClipConfig, SamConfig

FAMILY = "dfam"
"""The family's name."""

QueryKind = Literal["category", "cls"]
"""The choices of `ModelConfig.query`."""

NoTargetHead = Literal["none", "linear", "mlp"]
"""The choices of `ModelConfig.no_target`."""

DenseGrid = Literal["clip", "doubled"]
"""The choices of `ModelConfig.dense_grid`."""

DenseInterpolation = Literal["bicubic", "bilinear"]
"""The choices of `ModelConfig.dense_interpolation`."""

SparseBranchKind = Literal["feed_forward", "additive"]
"""The choices of `ModelConfig.sparse_branch`."""


@dataclass(frozen=True)
class ModelConfig:
    """A whole referring-image-segmentation model.

    The paper's supplement and its released code differ in places (section 19). The defaults are the
    released code; `with_supplement` gives the supplement's choices.
    """

    preset: str = "vitb-vitl336"
    """Name of the preset with these sizes; "custom" or a name of one's own where none has them."""

    query: QueryKind = "cls"
    """What the sparse branch asks with: the category's CLIP text vector, or BERT's [CLS] state."""

    no_target: NoTargetHead = "mlp"
    """The head that says "no such object": none, one linear layer, or the code's two-layer MLP."""

    dense_grid: DenseGrid = "doubled"
    """The dense prompt's grid: CLIP's own (24 patches of 336 pixels), or twice that (48)."""

    dense_interpolation: DenseInterpolation = "bicubic"
    """How the dense prompt is resized to SAM's grid."""

    sparse_branch: SparseBranchKind = "feed_forward"
    """What the sparse branch does with its query q.

    "feed_forward" is LN(q + MHA), then a post-norm feed-forward layer; "additive" is LN(q) + MHA.
    """

    sam: SamConfig = field(default_factory=SamConfig)
    """SAM's image encoder."""

    clip: ClipConfig = field(default_factory=ClipConfig)
    """CLIP's two towers."""

    bert: BertSpec = field(default_factory=BertSpec)
    """The text encoder."""

    prompt_width: int = 256
    """Channels of SAM's embeddings and prompts, and of the modules between the encoders and SAM."""

    pyramid_width: int = 768
    """Channels of CLIP's feature pyramid."""

    heads: int = 8
    """Attention heads of pixel decoder, sparse branch, mask decoder and DFAM."""

    deformable_layers: int = 6
    """Layers of the pixel decoder's encoder."""

    deformable_points: int = 4
    """Places that a head of the pixel decoder samples on each level."""

    ffn_width: int = 1024
    """Hidden channels of the feed-forward layers of pixel decoder, sparse branch and DFAM."""

    dfam_queries: int = 100
    """Number of DFAM's queries."""

    decoder_mlp_width: int = 2048
    """Hidden channels of the feed-forward layers of SAM's mask decoder."""

    max_tokens: int = 35
    """Tokens of an expression, [CLS] and [SEP] among them; longer ones are cut."""

    categories: int = 134
    """Rows of the category table."""

    @property
    def dense_prompt_grid(self) -> int:
        """Side of the dense prompt before it is resized to SAM's grid."""
        return self.clip.grid * (2 if self.dense_grid == "doubled" else 1)

    @property
    def mask_size(self) -> int:
        """Side of the low-resolution mask logits: SAM's decoder upsamples its grid four times."""
        return self.sam.grid * 4

    def with_category_query(self) -> ModelConfig:
        """The "refcoco" variant: category query, no no-target head (section 1)."""
        return replace(self, query="category", no_target="none")

    def with_supplement(self) -> ModelConfig:
        """The supplement's own words instead of the code (docs/reference/design.md, Presets)."""
        head: NoTargetHead = "none" if self.no_target == "none" else "linear"
        return replace(
            self,
            dense_grid="clip",
            dense_interpolation="bilinear",
            sparse_branch="additive",
            no_target=head,
        )

    def to_dict(self) -> dict[str, Any]:
        """All fields, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ModelConfig:
        """The inverse of `to_dict`; lists, which JSON makes of tuples, become tuples again.

        Raises TypeError for an unknown field.
        """
        return config_from(cls, data)


_TINY = ModelConfig(
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

_DEMO = ModelConfig(
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

PRESETS: dict[str, ModelConfig] = {"vitb-vitl336": ModelConfig(), "tiny": _TINY, "demo": _DEMO}
"""The usual models by name.

- "vitb-vitl336": the paper's: SAM ViT-B, CLIP ViT-L/14 at 336 pixels, bert-base-uncased.
- "tiny": every module at its smallest, for tests.
- "demo": trains on two CPU cores in hours; 256-pixel input, 128-pixel mask logits.
"""
