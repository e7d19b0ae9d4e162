"""ReLA cut into what becomes a graph each."""

from __future__ import annotations

from torch import Tensor, nn

from ris.export.families.bert import BertEncoder
from ris.reference.layers.deformable import Sampling
from ris.reference.rela.model import RelaModel


class TextEncoder(BertEncoder):
    """`input_ids` [N, T] -> `text_features` [N, T, width], those of padding among them."""

    def __init__(self, model: RelaModel) -> None:
        super().__init__(model.bert, model.config.max_tokens)


class Segmenter(nn.Module):
    """Pixel decoder and region decoder: the maps of an expression -> its answer."""

    def __init__(self, model: RelaModel, sampling: Sampling) -> None:
        super().__init__()
        self.pixel_decoder, self.regions = model.pixel_decoder, model.region_decoder
        self.pixel_decoder.set_sampling(sampling)

    def forward(
        self, res2: Tensor, res3: Tensor, res4: Tensor, res5: Tensor, text_features: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The answer for N expressions.

        Args:
            res2: The finest of the backbone's maps [N, C, s, s].
            res3: [N, 2C, s/2, s/2].
            res4: [N, 4C, s/4, s/4].
            res5: [N, 8C, s/8, s/8].
            text_features: BERT's states [N, T, width], padding included.

        Returns:
            `mask_logits` [N, 1, s, s], foreground minus background, and `no_target_logits` [N, 2].
        """
        features, levels = self.pixel_decoder([res2, res3, res4, res5])
        found = self.regions(features, levels, text_features)
        return found.mask_logits, found.no_target_logits
