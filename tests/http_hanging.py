"""`ris-serve http` with two workers whose engine never comes back from pictures of one width.

python -c "import http_hanging; http_hanging.main()" BUNDLE
"""

from __future__ import annotations

import sys
import time

from http_helper import RUNNING
from ris.serving import limits
from ris.serving.http.server import Serving, listen, serve
from ris.serving.http.settings import HttpSettings
from ris.serving.limits import Limits

WIDTH = 41
SECONDS = 2.0  # of a request, as by --max-seconds


class Hanging(Serving):
    """Serves such a model; a worker gets it as it is."""

    def _open(self):
        limits._LEAST_HANG = 0.0  # a test does not wait for a minute
        model = super()._open()
        honest = model.encode_image

        def encode(pixels):
            while pixels.shape[1] == WIDTH:
                time.sleep(600)
            return honest(pixels)

        model.encode_image = encode
        return model


def main() -> None:
    listening = listen("127.0.0.1", 0)
    print(f"http://127.0.0.1:{listening.getsockname()[1]}", file=sys.stderr, flush=True)
    settings = HttpSettings(limits=Limits(seconds=SECONDS))
    serve(Hanging(sys.argv[1], RUNNING, settings, workers=2), listening)
