"""The real tritonserver over repositories of ours: masks, caching, limits, a model a graph."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest

from conftest import REPO
from ris.engines.errors import RisError
from ris.runtime import open_bundle
from ris.runtime.commands.running import Running
from ris.serving.limits import Limits
from ris.serving.triton.config import ServerOptions, front_config, graph_config
from ris.serving.triton.repository import write_repository
from ris.serving.triton.server import Address, TritonServer, find_server
from serving_helpers import free_ports, picture_bytes

SMALL = Limits(
    image_bytes=200_000, pixels=1_000_000, expressions=4, characters=100, waiting=8, seconds=120
)


def no_server():
    if importlib.util.find_spec("tritonclient") is None:
        return "tritonclient is not installed"
    try:
        find_server()
    except RisError as error:
        return str(error)
    return None


needs_server = pytest.mark.skipif(
    no_server() is not None, reason=f"{no_server()} (make test-serving)"
)


def options(device="cpu", **more):
    running = Running("onnxruntime", device, threads=1, compute=None)
    return ServerOptions(running, **({"limits": SMALL} | more))


def serve(folder, bundle, chosen):
    """Writes a repository, and a server over it that is to be used in a `with` block."""
    write_repository(open_bundle(bundle), folder / "models", chosen)
    log = (folder / "log").open("w")
    return TritonServer(folder / "models", Address("127.0.0.1", *free_ports(3)), log)


@pytest.fixture(scope="module")
def server(served_bundle, tmp_path_factory):
    folder = tmp_path_factory.mktemp("triton")
    with serve(folder, served_bundle, options(delay_us=20_000)) as running:
        yield running


def ask(
    server,
    image,
    expressions,
    *,
    grpc=False,
    names=("rle_counts", "rle_size", "from_cache"),
    form=None,
    **more,
):
    import tritonclient.grpc
    import tritonclient.http

    triton = tritonclient.grpc if grpc else tritonclient.http
    port = server.address.grpc if grpc else server.address.http
    patience = {} if grpc else {"network_timeout": 300.0}
    client = triton.InferenceServerClient(f"127.0.0.1:{port}", **patience)

    inputs = []
    asked = {"image": [image], "expression": [text.encode() for text in expressions]}
    if form:
        asked["form"] = [form.encode()]
    for name, values in asked.items():
        inputs.append(triton.InferInput(name, [1, len(values)], "BYTES"))
        inputs[-1].set_data_from_numpy(np.array([values], np.object_))
    for name, value in more.items():
        inputs.append(triton.InferInput(name, [1, 1], "FP32"))
        inputs[-1].set_data_from_numpy(np.array([[value]], np.float32))

    outputs = [triton.InferRequestedOutput(name) for name in names]
    found = client.infer("ris", inputs, outputs=outputs)
    return {name: found.as_numpy(name) for name in names}


def expected(model, image, expressions, **more):
    return model.encode_image(Limits().decode(image)).segment_many(expressions, **more)


@needs_server
@pytest.mark.parametrize("grpc", [False, True], ids=["http", "grpc"])
def test_answers_are_the_local_runtimes(server, served_model, grpc):
    image, texts = picture_bytes(11 + grpc, 90, 70), ["left man", "the dog", "a red car"]
    of_each = ("mask", "rle_counts", "score", "no_target", "is_no_target", "note")
    names = (*of_each, "rle_size", "from_cache")
    found = ask(server, image, texts, grpc=grpc, names=names)
    wanted = expected(served_model, image, texts)
    assert found["mask"].shape == (1, 3, 70, 90)
    assert found["rle_size"].tolist() == [[70, 90]]
    assert not found["from_cache"].item()
    for i, answer in enumerate(wanted):
        np.testing.assert_array_equal(found["mask"][0, i], answer.mask)
        assert found["rle_counts"][0, i].decode() == answer.rle()["counts"]
        assert found["score"][0, i] == pytest.approx(answer.score, abs=1e-6)
        assert found["no_target"][0, i] == pytest.approx(answer.no_target, abs=1e-6)
        assert bool(found["is_no_target"][0, i]) == answer.is_no_target
        assert found["note"][0, i].decode() == "; ".join(answer.notes)
    assert ask(server, image, ["the dog"], grpc=grpc)["from_cache"].item()


@needs_server
def test_the_form_is_the_requests_or_the_servers(formed_bundle, formed_model, tmp_path):
    """Requests with the input and without it come at once, and get their own answers."""
    image, names = picture_bytes(22), ("rle_counts", "form_asked")
    chosen = options(form="sentence", delay_us=200_000)
    with serve(tmp_path, formed_bundle, chosen) as server, ThreadPoolExecutor(6) as pool:
        forms = (None, "phrase", "sentence") * 2

        def found(form):
            return ask(server, image, ["Left man"], names=names, form=form)

        for form, answer in zip(forms, pool.map(found, forms), strict=True):
            form = form or "sentence"
            [wanted] = expected(formed_model, image, ["Left man"], form=form)
            assert answer["form_asked"].tolist() == [[form.encode()]]
            assert answer["rle_counts"][0, 0].decode() == wanted.rle()["counts"]
        with pytest.raises(Exception, match="400: there is no form 'riddle'; the model has phra"):
            found("riddle")


@needs_server
def test_the_threshold_is_the_requests(server, served_model):
    image = picture_bytes(21)
    names = ("is_no_target", "mask")
    found = ask(server, image, ["left man"], names=names, no_target_threshold=0.0)
    assert found["is_no_target"].item()
    assert not found["mask"].any()

    found = ask(server, image, ["left man"], names=("mask",), no_target_threshold=1.0)
    [answer] = expected(served_model, image, ["left man"], no_target_threshold=1.0)
    np.testing.assert_array_equal(found["mask"][0, 0], answer.mask)


@needs_server
def test_many_clients_are_batched_and_share_encoded_images(server, served_model):
    """Requests of other lengths and images travel together, and each gets its own answer."""
    images = [picture_bytes(30 + i, 60 + 10 * i, 50) for i in range(3)]
    asked = [(images[i % 3], ["left man", "the dog", "a red car"][: 1 + i % 3]) for i in range(8)]
    before = server.metrics()
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda pair: ask(server, *pair, grpc=True), asked))
    for (image, texts), answer in zip(asked, found, strict=True):
        wanted = [a.rle()["counts"] for a in expected(served_model, image, texts)]
        assert [counts.decode() for counts in answer["rle_counts"][0]] == wanted

    def grown(name):
        after = server.metrics()
        return sum(after[k] - before.get(k, 0) for k in after if k.startswith(name))

    # each is counted after the answers were sent
    cache = ("hits_total", "misses_total", "images")
    wait_until(lambda: [grown(f"ris_image_cache_{name}") for name in cache] == [5, 3, 3])
    wait_until(lambda: grown("nv_inference_request_success") == 8)
    assert grown("nv_inference_exec_count") < 8


@needs_server
@pytest.mark.parametrize(
    ("image", "texts", "said"),
    [
        (b"/etc/passwd", ["x"], "400: the image is not an image that can be read"),
        (b"x" * 300_000, ["x"], "413: the image file has 0.3 MB, at most 0.2 MB"),
        (
            picture_bytes(1, 1300, 1000, "JPEG"),
            ["x"],
            "413: the image is 1300x1000 pixels, the limit is 1 megapixels",
        ),
        (picture_bytes(1), ["x"] * 5, "413: 5 expressions, at most 4"),
        (picture_bytes(1), ["x" * 101], "413: an expression has 101 characters, at most 100"),
        (picture_bytes(1), ["  "], "400: the expression is empty"),
        (picture_bytes(1), [], "400: nothing to look for"),
    ],
)
def test_what_is_refused_and_how(server, image, texts, said):
    from tritonclient.utils import InferenceServerException

    with pytest.raises(InferenceServerException) as refused:
        ask(server, image, texts)
    assert said in refused.value.message()
    assert refused.value.status() in ("400", said[:3]), "the model's, or the guard's"


@needs_server
@pytest.mark.parametrize("body", [b"[" * 150_000, b'{"a":' * 150_000], ids=["lists", "objects"])
def test_nested_brackets_do_not_reach_the_server(server, body):
    address = f"http://127.0.0.1:{server.address.http}"
    for path in ("models/ris/infer", "models/ris/versions/1/infer", "repository/index", "logging"):
        request = urllib.request.Request(f"{address}/v2/{path}", data=body)
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request, timeout=60)
        assert refused.value.code == (400 if "infer" in path else 403)
    assert server.ready()


@needs_server
def test_nothing_secret_is_on_the_command_line_and_only_the_guard_listens(server):
    process = psutil.Process(server._process.pid)
    assert process.exe().endswith("tritonserver")
    assert not any("key" in word for word in process.cmdline())
    everyone = [process, *process.children(recursive=True)]
    assert not [each for one in everyone for each in one.net_connections() if each.laddr]
    assert server._sockets.folder.stat().st_mode & 0o077 == 0


@needs_server
def test_clients_cannot_reach_into_the_server(server):
    import tritonclient.http
    from tritonclient.utils import InferenceServerException

    client = tritonclient.http.InferenceServerClient(f"127.0.0.1:{server.address.http}")
    attempts = [
        lambda: client.load_model("ris"),
        lambda: client.unload_model("ris"),
        lambda: client.register_system_shared_memory("a", "/ris-test", 64),
        lambda: client.update_log_settings({"log_file": "/tmp/ris-test"}),
    ]
    for attempt in attempts:
        with pytest.raises(InferenceServerException) as refused:
            attempt()
        assert "restricted" in refused.value.message()
    assert client.is_model_ready("ris")


@needs_server
def test_the_example_client_speaks_both(server, served_model, tmp_path):
    (tmp_path / "photo.png").write_bytes(picture_bytes(40))
    [answer] = expected(served_model, picture_bytes(40), ["left man"])
    client = [sys.executable, REPO / "examples" / "triton_client.py"]
    question = [tmp_path / "photo.png", "left man", "--mask", tmp_path / "m.npy"]
    over_http = ["--url", f"127.0.0.1:{server.address.http}"]
    over_grpc = ["--url", f"127.0.0.1:{server.address.grpc}", "--grpc"]
    for way in (over_http, over_grpc):
        command = [*client, *question, *way]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["rle"] == dict(answer.rle())
        np.testing.assert_array_equal(np.load(tmp_path / "m.npy")[0].astype(bool), answer.mask)


@needs_server
def test_a_full_queue_refuses_and_recovers(served_bundle, served_model, tmp_path):
    """A burst beyond the queue: some are served, the others refused; the next one is served."""
    from tritonclient.utils import InferenceServerException

    tight = Limits(waiting=1, seconds=120)
    images = [picture_bytes(number, 1200, 900, "JPEG") for number in range(12)]
    together = threading.Barrier(12)

    def burst(image):
        together.wait(60)  # or those that come late may find room
        return attempt(image)

    def attempt(image):
        try:
            ask(server, image, ["left man", "the dog", "a red car"], grpc=True)
        except InferenceServerException as error:
            return error.message()
        return "served"

    with serve(tmp_path, served_bundle, options(limits=tight, batch=1)) as server:
        with ThreadPoolExecutor(12) as pool:
            found = list(pool.map(burst, images))
        refused = [said for said in found if said != "served"]
        assert "served" in found
        assert refused
        full = ("busy with 2 requests", "maximum queue size")  # the guard's, or Triton's own
        assert all(any(one in said for one in full) for said in refused)
        assert attempt(picture_bytes(99, 1200, 900, "JPEG")) == "served"

        image = images[7]  # whose mask waits on disk
        [answer] = expected(served_model, image, ["left man"])
        for grpc in (False, True):
            found = ask(server, image, ["left man"], grpc=grpc, names=("mask",))
            np.testing.assert_array_equal(found["mask"][0, 0], answer.mask)


@needs_server
@pytest.mark.parametrize(
    "victim", ["instance", "server", "hangs", "hangs, asked over gRPC", "does not come back"]
)
def test_a_death_is_seen_and_the_command_ends_with_1(served_bundle, tmp_path, victim):
    """As is an instance that does not react, or whose engine does not come back from a request."""
    seconds = 1 if victim == "does not come back" else 120
    limits = replace(SMALL, seconds=seconds)
    write_repository(open_bundle(served_bundle), tmp_path / "models", options(limits=limits))
    if seconds == 1:
        (tmp_path / "models" / "ris" / "1" / "model.py").write_text(NEVER_BACK)
    http, grpc, metrics = free_ports(3)
    ports = [f"--http-port={http}", f"--grpc-port={grpc}", f"--metrics-port={metrics}"]
    program = Path(sys.executable).parent / "ris-serve"
    command = [str(program), "start", str(tmp_path / "models"), *ports]
    others = shared_regions()
    with (tmp_path / "log").open("w") as log:
        started = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        wait_until(lambda: is_ready(http) or started.poll() is not None)
        [triton] = psutil.Process(started.pid).children()
        [stub] = triton.children()
        regions = shared_regions() - others
        assert regions
        if victim.startswith("hangs"):
            stub.suspend()
            server = SimpleNamespace(address=Address("127.0.0.1", http, grpc, metrics))
            with pytest.raises(Exception, match="not healthy"):
                ask(server, picture_bytes(1, 90, 70), ["left man"], grpc="gRPC" in victim)
        elif victim == "does not come back":
            server = SimpleNamespace(address=Address("127.0.0.1", http, grpc, metrics))
            with pytest.raises(Exception, match=r"504: |50\d|closed|refused|reset|not healthy"):
                ask(server, picture_bytes(1, 90, 70), ["left man"])
        else:
            (stub if victim == "instance" else triton).kill()
        assert started.wait(60) == 1
    finally:
        started.kill()
    assert not is_ready(http)
    assert not psutil.pid_exists(triton.pid)
    wait_until(lambda: not psutil.pid_exists(stub.pid))
    assert not regions & shared_regions()
    said = {
        "instance": "an instance of the model died",
        "server": "ended by signal 9",
        "hangs": "an instance of the model hangs",
        "hangs, asked over gRPC": "an instance of the model hangs",
        "does not come back": "an instance of the model",  # died, or gives no sign of life
    }
    log = (tmp_path / "log").read_text()
    assert f"Error: {said[victim]}" in log.replace("tritonserver ", "")
    assert ("Timeout (0:00:03)!" in log) == (victim == "does not come back")


# the written model, with an engine that does not come back from the picture that the test sends
NEVER_BACK = """
import time
from ris.serving import limits
from ris.serving.triton.backend import TritonPythonModel as Honest

class TritonPythonModel(Honest):
    def initialize(self, args):
        limits._LEAST_HANG = 0.0  # a test does not wait for a minute
        super().initialize(args)
        model = self._answerer.model
        honest = model.encode_image

        def encode(pixels):
            while pixels.shape[:2] == (70, 90):
                time.sleep(600)
            return honest(pixels)

        model.encode_image = encode
"""


def is_ready(port):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/health/ready", timeout=5) as found:
            return found.status == 200
    except OSError:
        return False


def shared_regions():
    return {path.name for path in Path("/dev/shm").glob("ris-triton-*")}


def wait_until(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


@needs_server
def test_an_address_that_is_taken_is_one_sentence(server, served_bundle, tmp_path):
    second = TritonServer(server._repository, server.address)
    with pytest.raises(RisError, match="cannot be listened at"), second:
        pass


# what Triton's own ONNX Runtime backend does, for a server that has the Python backend alone
ONNX_BACKEND = """
import onnxruntime
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def initialize(self, args):
        path = f"{args['model_repository']}/{args['model_version']}/model.onnx"
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        providers = ["CPUExecutionProvider"]
        self.session = onnxruntime.InferenceSession(path, options, providers=providers)

    def execute(self, requests):
        responses = []
        for request in requests:
            feeds = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
            names = [output.name for output in self.session.get_outputs()]
            found = self.session.run(names, feeds)
            tensors = [pb_utils.Tensor(name, value) for name, value in zip(names, found)]
            responses.append(pb_utils.InferenceResponse(output_tensors=tensors))
        return responses
"""


@needs_server
def test_a_model_a_graph(served_bundle, served_model, tmp_path):
    """The configurations for the container's backends.

    Its ONNX Runtime backend is played by the Python one. The expressions of several requests are
    asked together here, too.
    """
    server = serve(tmp_path, served_bundle, options(graphs="onnx", join=True, delay_us=100_000))
    for config in (tmp_path / "models").glob("ris_*/config.pbtxt"):
        text = config.read_text()
        assert 'backend: "onnxruntime"' in text
        config.write_text(text.replace('backend: "onnxruntime"', 'backend: "python"'))
        (config.parent / "1" / "model.py").write_text(ONNX_BACKEND)
    with server:
        image, texts = picture_bytes(50, 70, 90), ["left man", "the dog"]
        found = ask(server, image, texts)
        wanted = [answer.rle()["counts"] for answer in expected(served_model, image, texts)]
        assert [counts.decode() for counts in found["rle_counts"][0]] == wanted

        def masks_of(texts):
            return ask(server, image, texts, grpc=True, names=("mask",))["mask"][0].astype(bool)

        asked = [["the dog"], ["a red car", "left man"], ["left man"]]
        with ThreadPoolExecutor(3) as pool:
            together = list(pool.map(masks_of, asked))
        for each, answer in zip(asked, together, strict=True):
            masks = np.stack([one.mask for one in expected(served_model, image, each)])
            assert (answer == masks).mean() > 0.999

        with pytest.raises(Exception, match="400: the expression is empty"):
            ask(server, image, ["  "])
        assert any('model="ris_fusion"' in name for name in server.metrics())


def test_the_configuration_follows_the_manifest(served_category_bundle, served_bundle):
    """Without a server: what depends on the model and on the options."""
    bundle = open_bundle(served_bundle)
    text = front_config(bundle, options(instances=3, batch=5, delay_us=70))
    assert 'name: "no_target"' in text
    assert "max_batch_size: 5" in text
    assert "count: 3 kind: KIND_CPU" in text
    assert "max_queue_delay_microseconds: 70" in text
    assert "max_queue_size: 8" in text
    assert "KIND_GPU" in front_config(bundle, options(device="cuda"))
    fusion = graph_config(bundle, "fusion", options(graphs="tensorrt"))
    assert 'platform: "tensorrt_plan"' in fusion
    assert "max_batch_size: 0" in fusion
    for spec in bundle.manifest.graphs["fusion"].inputs:
        assert f'name: "{spec.name}"' in fusion
    graphs = {stage: graph_config(bundle, stage, options(graphs="onnx")) for stage in bundle.stages}
    batched = [stage for stage, text in graphs.items() if "max_batch_size: 8" in text]
    assert batched == [
        "sam_image_encoder",
        "clip_image_encoder",
        "image_features",
        "text_encoder",
    ]
    assert all(("dynamic_batching" in text) == (stage in batched) for stage, text in graphs.items())
    plans = {stage: graph_config(bundle, stage, options(graphs="tensorrt")) for stage in batched}
    assert "max_batch_size: 8" in plans.pop("text_encoder")
    assert all("max_batch_size: 1" in text for text in plans.values())
    text = front_config(open_bundle(served_category_bundle), options())
    assert 'name: "category" data_type: TYPE_STRING' in text
    assert 'name: "category_asked"' in text
    assert 'name: "no_target" ' not in text
