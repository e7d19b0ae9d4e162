"""Kills workers and the whole of `ris-serve http` under load: what is lost, and what heals.

    python tests/http_drill.py ris-bundle --seconds 60

Clients ask questions whose answers are known. An answer that is not the known one ends the drill
with an error; a request without an answer is counted by what the client saw.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import signal
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import psutil

from http_helper import Client, Process, is_worker
from serving_helpers import free_ports, picture_bytes

TEXTS = ("left man", "the dog", "a red car")
PICTURES = 12


class Load:
    """Clients that ask one question after the other, until `stop`."""

    def __init__(self, port, known, clients):
        self.port, self.known = port, known
        self.seen, self.wrong = Counter(), []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(n,)) for n in range(clients)]
        for thread in self._threads:
            thread.start()

    def _ask(self, number):
        client = Client(self.port)
        for turn in itertools.count(number):
            if self._stop.is_set():
                return
            picture = turn % PICTURES
            try:
                reply = client.segment(picture_bytes(picture, 320, 240), TEXTS)
            except OSError as error:
                self.seen[type(error).__name__] += 1
                client = Client(self.port)
                time.sleep(0.05)
                continue
            except Exception as error:  # an answer that was cut off
                self.seen[type(error).__name__] += 1
                client = Client(self.port)
                continue
            self.seen[str(reply.status)] += 1
            if reply.status == 200 and masks(reply) != self.known[picture]:
                self.wrong.append(reply.headers["x-request-id"])

    def stop(self):
        self._stop.set()
        for thread in self._threads:
            thread.join()


def masks(reply):
    return [answer["rle"]["counts"] for answer in reply.json["answers"]]


def start(bundle, folder, port, name):
    options = ("--workers", "2", "--log-level", "warning")
    return Process(bundle, folder / name, *options, "--port", str(port))


def drill(bundle, seconds, clients, folder):
    [port] = free_ports(1)
    dice = random.Random(0)
    with start(bundle, folder, port, "log-1") as server:
        assert server.port == port
        known = [
            masks(Client(port).segment(picture_bytes(number, 320, 240), TEXTS))
            for number in range(PICTURES)
        ]
        load = Load(port, known, clients)
        kills, healed = 0, []
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(4)
            before = server.workers
            os.kill(dice.choice(sorted(before)), signal.SIGKILL)
            kills, killed = kills + 1, time.monotonic()
            while not ready_again(server, before):
                time.sleep(0.05)
            healed.append(time.monotonic() - killed)
        after_workers = Counter(load.seen)
        print(f"{kills} workers killed: {dict(after_workers)}")
        print(f"a new worker was started after {max(healed):.1f} s at most")

        server.process.kill()
        orphans = psutil.Process(os.getpid()).children(recursive=True)
        server.process.wait()
        began = time.monotonic()
        while any(map(is_worker, orphans)):
            assert time.monotonic() - began < 60, "workers outlive their supervisor"
            time.sleep(0.1)
        print(f"the supervisor killed: its workers ended after {time.monotonic() - began:.1f} s")

    with start(bundle, folder, port, "log-2") as server:
        assert server.port == port
        print(f"the server started anew after {time.monotonic() - began:.1f} s")
        time.sleep(3)
        load.stop()
    print(f"in all: {dict(load.seen)}, {len(load.wrong)} wrong answers")
    if load.wrong or not load.seen["200"]:
        raise SystemExit(f"wrong answers: {load.wrong[:5]}")


def ready_again(server, before):
    now = server.workers
    return len(now) == 2 and now != before


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--clients", type=int, default=8)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        drill(given.bundle, given.seconds, given.clients, Path(folder))


if __name__ == "__main__":
    main()
