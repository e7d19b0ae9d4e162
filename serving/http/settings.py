"""What a server may be told, and how much memory that lets a hostile client take."""

from __future__ import annotations

from dataclasses import dataclass, field

from ris.serving.http.labelling.pictures import PictureSource
from ris.serving.limits import Limits

DECODE_BYTES = 20
"""Bytes a pixel that decoding takes at its worst, over all formats and modes."""

MASK_BYTES = 1
"""Bytes a pixel of each mask that is kept."""

WRITE_BYTES = 16
"""Bytes a pixel that making one mask, and writing it into the answer, takes at its worst."""

OUTLINE_BYTES = 32_000_000
"""Bytes that writing a mask takes at its worst, however small the picture is.

Its outlines have as many corners as the logits allow.
"""

BODY_COPIES = 3
"""How often a request's body is in memory while it is read: JSON, its text, the file."""


@dataclass(frozen=True)
class HttpSettings:
    """How a server behaves; `Limits` says what a request may be."""

    limits: Limits = field(default_factory=Limits)
    """What is accepted. `seconds` is a request's time from its first byte to its answer."""

    parallel: int = 1
    """Questions that the model is asked at once, in threads.

    A question's graphs run on all cores; with two at once ONNX Runtime was slower on a CPU.
    """

    cached_images: int = 64
    """Encoded images that are kept."""

    picture_bytes: int | None = None
    """Bytes that pictures and masks of the questions at work may take together.

    None: what `parallel` of the largest questions take.
    """

    body_bytes: int = 400_000_000
    """Bytes that requests may take together until they are answered."""

    answer_bytes: int = 32_000_000
    """Bytes of one answer."""

    per_client: int | None = None
    """Requests that one address may have waiting; more are refused with 429. None: no limit."""

    token: str | None = field(default=None, repr=False)
    """What a client must send as `Authorization: Bearer`. None: anybody is served."""

    pictures: PictureSource = field(default_factory=PictureSource)
    """Where the pictures of labelling tasks may come from."""

    form: str | None = None
    """The form of questions that name none. None: the model's own choice."""

    @property
    def most_body(self) -> int:
        """The most bytes of a request's body: an image in base64, and words."""
        words = 4 * self.limits.expressions * self.limits.characters
        return self.limits.image_bytes * 4 // 3 + words + 100_000

    def question_bytes(self, pixels: int, masks: int) -> int:
        """The most that a picture takes, and then as many masks of it at once."""
        return max(pixels * DECODE_BYTES, self.mask_bytes(pixels, masks))

    def mask_bytes(self, pixels: int, masks: int) -> int:
        """The most that so many masks of a picture that is kept take at once."""
        return pixels * (MASK_BYTES * masks + WRITE_BYTES) + OUTLINE_BYTES

    def picture_ceiling(self, together: int) -> int:
        """The most that all pictures and masks at work take.

        together: the most expressions that go through the graphs at once.
        """
        if self.picture_bytes is not None:
            return self.picture_bytes
        return self.parallel * self.largest_question(together)

    def largest_question(self, together: int) -> int:
        """Bytes of the largest question that the limits allow."""
        return self.question_bytes(self.limits.pixels, min(together, self.limits.expressions))

    def ceiling(self, together: int, scene: int = 0) -> int:
        """The most bytes that requests can take beside the model itself.

        Args:
            together: The most expressions that go through the graphs at once.
            scene: Bytes of an encoded image.
        """
        bodies = max(self.body_bytes, BODY_COPIES * self.most_body)  # one alone is let in
        answers = self.parallel * 2 * self.answer_bytes  # in the making
        scenes = (self.cached_images + self.parallel) * scene
        return self.picture_ceiling(together) + bodies + answers + scenes
