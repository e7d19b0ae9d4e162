"""One HTML file that needs nothing else: the frame of reports and tables."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem;
  color: #1b1b1f }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums }
th, td { padding: .25rem .75rem; border-bottom: 1px solid #ddd; text-align: right }
th:first-child, td:first-child { text-align: left }
td small { color: #666 } figure { margin: 1.5rem 0 } img { max-width: 100%; height: auto }
figcaption { color: #444 }
.case { display: flex; flex-wrap: wrap; gap: .5rem } .case figure { margin: 0; width: 15rem }
"""


def escaped(words: object) -> str:
    """Text that stands in a page as it is."""
    return html.escape(str(words))


def figure(image: bytes, caption: str) -> str:
    """A PNG file with its caption, inside the page."""
    source = f"data:image/png;base64,{base64.b64encode(image).decode()}"
    text = escaped(caption)
    return f'<figure><img src="{source}" alt="{text}"><figcaption>{text}</figcaption></figure>'


def page(title: str, parts: Sequence[str]) -> str:
    """The whole page; `parts` is HTML."""
    head = f'<meta charset="utf-8"><title>{escaped(title)}</title>'
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head><body>\n'
        + "\n".join(parts)
        + "\n</body></html>\n"
    )
