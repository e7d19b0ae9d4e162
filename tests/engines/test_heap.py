"""Freed memory goes back to the system."""

from __future__ import annotations

import subprocess
import sys

from ris.engines.heap import Heap


def test_memory_is_given_back_each_time_so_many_bytes_were_used():
    heap = Heap(every=100)
    assert [heap.used(40) for _ in range(6)] == [False, False, True, False, False, True]


def test_a_c_library_that_cannot_is_left_alone():
    heap = Heap(every=1)
    heap._trim = None
    assert not heap.used(2)


FREED = """
import threading, numpy as np, psutil
from ris.engines.heap import Heap

def work():
    # blocks below glibc's threshold, the last kept: the heap below it cannot shrink by itself
    blocks = [np.ones(100_000, np.uint8) for _ in range(1000)]
    kept.append(blocks[-1])

kept = []
for _ in range(4):
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
before = psutil.Process().memory_info().rss
Heap(every=1).used(2)
print((before - psutil.Process().memory_info().rss) >> 20)
"""


def test_what_threads_have_freed_leaves_the_process():
    done = subprocess.run([sys.executable, "-c", FREED], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 50
