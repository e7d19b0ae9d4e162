"""The two queues of the HTTP server: who comes in, and whose turn it is."""

from __future__ import annotations

import asyncio

import pytest

from ris.serving.http.settings import (
    DECODE_BYTES,
    MASK_BYTES,
    OUTLINE_BYTES,
    WRITE_BYTES,
    HttpSettings,
)
from ris.serving.http.turns import BusyError, Door, Turns
from ris.serving.limits import Limits


def take(turns, size):
    return asyncio.ensure_future(turns.turn(size))


async def settle():
    for _ in range(5):
        await asyncio.sleep(0)


def test_turns_come_in_order_and_a_few_at_a_time():
    async def run():
        turns = Turns(2, 100)
        asked = [take(turns, 10) for _ in range(4)]
        await settle()
        assert [one.done() for one in asked] == [True, True, False, False]
        assert (turns.running, turns.waiting) == (2, 2)
        asked[1].result().release()
        await settle()
        assert [one.done() for one in asked] == [True, True, True, False]
        for one in asked[:3]:
            one.result().release()
            one.result().release()  # twice is once
        await settle()
        assert turns.running == 1
        asked[3].result().release()
        assert turns.running == 0

    asyncio.run(run())


def test_a_large_one_waits_until_it_fits_and_nobody_overtakes_it():
    async def run():
        turns = Turns(4, 100)
        first, large, small = take(turns, 60), take(turns, 60), take(turns, 10)
        await settle()
        assert [one.done() for one in (first, large, small)] == [True, False, False]
        first.result().release()
        await settle()
        assert large.done()
        assert small.done()

    asyncio.run(run())


def test_more_than_there_is_waits_for_all_of_it():
    async def run():
        turns = Turns(4, 100)
        small, huge = take(turns, 1), take(turns, 1000)
        await settle()
        assert not huge.done()
        small.result().release()
        await settle()
        assert huge.done()
        after = take(turns, 1)
        await settle()
        assert not after.done()
        huge.result().release()
        await settle()
        assert after.done()

    asyncio.run(run())


def test_whoever_gives_up_leaves_the_queue_and_lets_the_next_one_go():
    async def run():
        turns = Turns(2, 100)
        first, large, small = take(turns, 60), take(turns, 60), take(turns, 10)
        await settle()
        large.cancel()
        await settle()
        assert small.done()
        assert turns.waiting == 0
        # handed over and cancelled at once: the turn is not lost
        late = take(turns, 10)
        await settle()
        first.result().release()
        late.cancel()
        await settle()
        small.result().release()
        assert turns.running == 0

    asyncio.run(run())


def test_the_wait_that_a_client_is_told_grows_with_the_queue():
    turns = Turns(2, 100)
    waits = [turns.retry_after(before) for before in (0, 1, 20, 10_000)]
    assert waits == sorted(waits)
    assert waits[0] == 1
    assert waits[-1] == 60


def test_the_door_counts_places_bytes_and_clients():
    door = Door(3, 100, per_client=2)
    with door.enter("a", 30, 1), door.enter("a", 30, 1) as second:
        with pytest.raises(BusyError) as refused, door.enter("a", 1, 7):
            pass
        assert (refused.value.status, refused.value.retry_after) == (429, 7)
        with pytest.raises(BusyError, match="fill the memory"), door.enter("b", 50, 1):
            pass
        second.resize(10)
        with door.enter("b", 50, 1) as third:
            with pytest.raises(BusyError, match="3 requests are waiting") as refused:
                door.enter("c", 1, 1).__enter__()
            assert refused.value.status == 503
            with pytest.raises(BusyError, match="have not fetched yet"):
                third.resize(90)
            assert door.bytes == 90
    assert door.requests == door.bytes == 0
    with door.enter("a", 1000, 1):  # one alone is let in, however large
        pass


def test_the_ceiling_is_what_the_limits_allow():
    settings = HttpSettings(
        limits=Limits(pixels=1_000_000, expressions=100, image_bytes=1000, characters=10),
        parallel=3,
        body_bytes=50_000_000,
        answer_bytes=1_000_000,
        cached_images=7,
    )
    masks = 1_000_000 * (8 * MASK_BYTES + WRITE_BYTES) + OUTLINE_BYTES
    a_question = max(1_000_000 * DECODE_BYTES, masks)
    assert settings.largest_question(8) == a_question
    assert settings.ceiling(8, 100) == 3 * a_question + 50_000_000 + 6_000_000 + 10 * 100
    few = HttpSettings(limits=settings.limits, picture_bytes=5)
    assert few.picture_ceiling(8) == 5
