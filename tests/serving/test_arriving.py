"""How long a server waits for the next bytes of a body."""

from __future__ import annotations

import asyncio

import pytest

from ris.serving import arriving
from ris.serving.limits import LimitError


@pytest.mark.parametrize(
    ("passed", "received", "left"),
    [
        (0, 0, 10),
        (0, 1_000_000, 10),  # however much has come: silence is silence
        (9, 1, 1.001),
        (11, 1, 0),
        (40, 31_000, 1),  # a thousand bytes a second, and ten seconds
        (40, 1_000_000, 10),  # a slow upload that goes on
        (55, 10_000_000, 5),
    ],
)
def test_a_body_may_be_slow_but_has_to_come(monkeypatch, passed, received, left):
    now = [100.0]
    monkeypatch.setattr(arriving.time, "monotonic", lambda: now[0])
    arrival = arriving.Arrival(60)
    now[0] += passed
    assert arrival.left(received) == pytest.approx(left)


def test_what_does_not_come_is_one_sentence(monkeypatch):
    monkeypatch.setattr(arriving, "SILENT_SECONDS", 0.01)

    async def run():
        await arriving.Arrival(60).next(asyncio.sleep(60), 0)

    with pytest.raises(LimitError, match="the body did not arrive: it may take 60 s") as refused:
        asyncio.run(run())
    assert refused.value.status == 408
