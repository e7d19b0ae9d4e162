"""Ends of models that other programs bring about: closed while threads ask, inherited by a fork.

    python tests/process_drill.py close openvino BUNDLE
    python tests/process_drill.py end openvino BUNDLE
    python tests/process_drill.py fork onnxruntime BUNDLE

Runs in a process of its own, since what goes wrong here is a crash or a hang. `close` says nothing
and ends with 0, and so does `end`, whose threads still ask when the program ends. `fork` prints a
line for each way to go on after a fork: its name, and "well" or what happened.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from ris.engines import EngineOptions, Session, create
from ris.runtime import EngineError, Model, load, open_bundle
from ris.runtime.parity import graph_feeds, load_golden

ROUNDS, THREADS = 20, 8
PATIENCE = 60.0  # seconds, on a machine that does other things too
PICTURE = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
WORDS = [f"the man {number}" for number in range(8)]


def answers(model: Model, scene=None, count: int = 3) -> bytes:
    scene = scene or model.encode_image(PICTURE)
    return b"".join(answer.logits.tobytes() for answer in scene.segment_many(WORDS[:count]))


def ask_until_closed(ask: Callable[[], bytes], expected: bytes, ends: list[str]) -> None:
    """Asks again and again; `ends` gets the sentence of the end, or what differs."""
    try:
        while ask() == expected:
            pass
        ends.append("an answer differs")
    except EngineError as error:
        ends.append(str(error))


def close_under_load(opened: Model | Session, ask: Callable[[], bytes], sentence: str) -> None:
    """Closes what THREADS threads ask, from two more at once."""
    expected, ends = ask(), []
    asking = [
        threading.Thread(target=ask_until_closed, args=(ask, expected, ends))
        for _ in range(THREADS)
    ]
    closing = [threading.Thread(target=opened.close) for _ in range(2)]
    for thread in asking:
        thread.start()
    time.sleep(0.02)
    for thread in closing:
        thread.start()
    for thread in (*closing, *asking):
        thread.join(PATIENCE)
        assert not thread.is_alive(), "closing hangs"
    assert ends == [sentence] * THREADS, ends


def close(engine: str, bundle: str) -> None:
    """Sessions, ROUNDS times, as opening one is cheap; then a model."""
    found = open_bundle(bundle)
    graph = found.graph("mask_decoder")
    feeds = graph_feeds(graph, load_golden(found))
    chosen = create(engine, EngineOptions())
    artifact = chosen.compile(graph)
    for _ in range(ROUNDS):
        session = chosen.open(graph, artifact)

        def run(session=session) -> bytes:
            return session.run(feeds)["mask_logits"].tobytes()

        sentence = "mask_decoder: the session is closed; load the bundle again"
        close_under_load(session, run, sentence)
    model = load(bundle, engine=engine)
    close_under_load(model, partial(answers, model), "the model is closed; load the bundle again")


def end(engine: str, bundle: str) -> None:
    """Leaves daemon threads behind that ask."""
    model = load(bundle, engine=engine)
    expected = answers(model)
    for _ in range(4):
        ask = partial(ask_until_closed, partial(answers, model), expected, [])
        threading.Thread(target=ask, daemon=True).start()
    time.sleep(0.2)


def in_child(work: Callable[[], object]) -> str:
    """What becomes of a fork whose child does `work` and ends as Python ends."""
    pid = os.fork()
    if pid == 0:
        work()
        sys.exit(0)  # as main's last line would
    return end_of(pid)


def end_of(pid: int) -> str:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            return "well" if code == 0 else f"ended with {code}"
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return "hangs"


INHERITED: list[Model] = []
"""For the workers of a pool, which are handed only what can be pickled."""


def answers_of_inherited(count: int) -> bytes:
    return answers(INHERITED[0], None, count)


class Forks:
    """A model, and a method for each way to go on after a fork."""

    def __init__(self, bundle: str, **options) -> None:
        self._load_it = partial(load, bundle, threads=4, **options)
        INHERITED[:] = [self._load_it()]
        self._model = INHERITED[0]
        self._scene = self._model.encode_image(PICTURE)
        counts = (1, 3, 8)
        self._expected = {n: answers(self._model, self._scene, n) for n in counts}

    def ends(self) -> str:
        return in_child(lambda: None)

    def ends_at_once(self) -> str:
        return in_child(lambda: os._exit(0))

    def asks(self) -> str:
        return in_child(self._ask)

    def asks_from_threads(self) -> str:
        return in_child(self._ask_from_threads)

    def refuses(self) -> str:
        """Where each request needs a thread of its own."""
        return in_child(
            partial(
                self._refused, "a model that shares the cores (throughput) does not survive fork"
            )
        )

    def closes(self) -> str:
        return in_child(self._close)

    def loads(self) -> str:
        return in_child(self._load)

    def forks_again(self) -> str:
        return in_child(self._fork_again)

    def workers_of_a_server(self) -> str:
        """As gunicorn does with --preload: two workers that ask at the same time, and end."""
        children = []
        for _ in range(2):
            pid = os.fork()
            if pid == 0:
                self._ask()
                sys.exit(0)
            children.append(pid)
        return " and ".join({end_of(pid) for pid in children})

    def a_pool(self) -> str:
        with multiprocessing.get_context("fork").Pool(2) as pool:
            found = pool.map_async(answers_of_inherited, [1, 3, 8]).get(PATIENCE)
            pool.close()
            pool.join()
        return "well" if found == list(self._expected.values()) else "answers differ"

    def data_loader(self) -> str:
        """PyTorch's workers, while the model is open here."""
        from torch.utils.data import DataLoader

        loader = DataLoader(range(8), num_workers=2, multiprocessing_context="fork")
        found = sorted(int(item) for item in loader)
        return "well" if found == list(range(8)) else f"gave {found}"

    def forked_while_it_answers(self) -> str:
        """The child refuses, and ends."""
        session = self._model.open_sessions["mask_decoder"]
        inside, leave, right = threading.Event(), threading.Event(), session._run

        def slow(feeds):
            inside.set()
            leave.wait(PATIENCE)
            return right(feeds)

        session._run = slow
        asking = threading.Thread(target=answers, args=(self._model, self._scene))
        asking.start()
        inside.wait(PATIENCE)
        found = in_child(
            partial(self._refused, "the process was forked while the model was answering")
        )
        leave.set()
        asking.join()
        session._run = right
        return found

    def the_parent(self) -> str:
        """After all that it answers and closes as ever."""
        self._ask()
        self._model.close()
        return "well"

    def _ask(self) -> None:
        for count, expected in self._expected.items():
            assert answers(self._model, self._scene, count) == expected
            assert answers(self._model, None, count) == expected

    def _ask_from_threads(self) -> None:
        asking = [threading.Thread(target=self._ask) for _ in range(4)]
        for thread in asking:
            thread.start()
        for thread in asking:
            thread.join()

    def _close(self) -> None:
        self._model.close()
        self._model.close()
        assert self._sentence() == "the model is closed; load the bundle again"

    def _load(self) -> None:
        with self._load_it() as model:
            assert answers(model) == self._expected[3]

    def _fork_again(self) -> None:
        assert in_child(self._ask) == "well"

    def _refused(self, why: str) -> None:
        sentence = f"text_encoder: {why}; load the bundle in the process that asks"
        assert self._sentence() == sentence, self._sentence()
        self._model.close()

    def _sentence(self) -> str:
        try:
            answers(self._model, self._scene)
        except EngineError as error:
            return str(error)
        return "no error"


WAYS = (
    "ends",
    "ends_at_once",
    "asks",
    "asks_from_threads",
    "closes",
    "loads",
    "forks_again",
    "workers_of_a_server",
    "a_pool",
    "data_loader",
    "forked_while_it_answers",
    "the_parent",
)
WITH_THROUGHPUT = ("ends", "refuses", "closes", "loads", "the_parent")


def fork(engine: str, bundle: str) -> None:
    engine, _, option = engine.partition(":")
    forks = Forks(bundle, engine=engine, throughput=bool(option))
    for way in WITH_THROUGHPUT if option else WAYS:
        print(way, getattr(forks, way)(), flush=True)


if __name__ == "__main__":
    what, engine, bundle = sys.argv[1:]
    {"close": close, "end": end, "fork": fork}[what](engine, str(Path(bundle).resolve()))
