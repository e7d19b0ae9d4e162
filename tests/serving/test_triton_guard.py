"""What the guard lets through to tritonserver, and how much of it at once."""

from __future__ import annotations

import json
import struct

import pytest

from ris.serving.limits import LimitError, Limits
from ris.serving.triton.config import read_limits
from ris.serving.triton.guard import Address, Room
from ris.serving.triton.guard_checks import JSON_BYTES, check_grpc, check_http, largest_request
from ris.serving.triton.server import instances_of

LIMITS = Limits(image_bytes=100_000, expressions=4)


def http_body(inputs, binary=b""):
    head = json.dumps({"inputs": inputs}).encode()
    return head + binary, str(len(head))


def an_input(name="expression", shape=(1, 1), **parameters):
    return {"name": name, "datatype": "BYTES", "shape": list(shape), "parameters": parameters}


def test_what_an_honest_client_sends_over_http_passes():
    inputs = [an_input("image", binary_data_size=90_000), an_input(shape=(1, 4))]
    check_http(*http_body(inputs, b"x" * 90_000), LIMITS)
    check_http(b'{"inputs": []}', None, LIMITS)
    check_http(b"[]", None, LIMITS)  # tritonserver says what is wrong with it


@pytest.mark.parametrize(
    ("body", "length", "status", "said"),
    [
        (b"[" * 150_000, None, 400, "JSON is nested too deeply"),
        (b'{"a":' * 150_000, None, 400, "JSON is nested too deeply"),
        (b"[" * 150_000 + b"]" * 150_000, "300000", 400, "JSON is nested too deeply"),
        (b"no json", None, 400, "JSON is not valid"),
        (b'{"inputs": [], "a": 0, "inputs": []}', None, 400, "has a key twice"),
        (b'{"inputs": [{"shape": [1, 9], "sh\\u0061pe": [1, 1]}]}', None, 400, "has a key twice"),
        (b'{"a": {"b": [{"c": 1, "c": 1}]}}', None, 400, "has a key twice"),
        (b"\xff{}", None, 400, "JSON is not valid"),
        (b"{}", "3", 400, "not a length in the request"),
        (b"{}", "-1", 400, "not a length in the request"),
        (b"{}", "²", 400, "not a length in the request"),
        (b" " * (JSON_BYTES + 1), None, 413, "send the image as binary data"),
        (*http_body([an_input(shape=(1, 5))]), 413, "5 expressions, at most 4"),
        (*http_body([an_input(shape=(1 << 40, 1 << 40))]), 413, "at most 4"),
        (*http_body([an_input(binary_data_size=30_000_000)]), 413, "30000000 bytes, at most"),
    ],
)
def test_what_would_harm_the_server_is_refused_over_http(body, length, status, said):
    with pytest.raises(LimitError, match=said) as refused:
        check_http(body, length, LIMITS)
    assert refused.value.status == status


def varint(value):
    found = b""
    while value > 0x7F:
        found += bytes([value & 0x7F | 0x80])
        value >>= 7
    return found + bytes([value])


def field(number, value):
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def message(*shapes, raw=(), model=b"ris", name=b"expression"):
    found = field(1, model)
    for shape in shapes:
        found += field(5, field(1, name) + field(3, b"".join(map(varint, shape))))
    return found + b"".join(field(7, data) for data in raw)


def test_what_an_honest_client_sends_over_grpc_passes():
    check_grpc(message((1, 4), raw=[b"x" * 100]), LIMITS)
    unpacked = field(1, b"ris") + field(5, field(3, 1) + field(3, 4) + field(5, field(8, b"text")))
    check_grpc(unpacked + varint(20 << 3 | 5) + struct.pack("<f", 1.0), LIMITS)
    service_pb2 = pytest.importorskip("tritonclient.grpc.service_pb2")
    request = service_pb2.ModelInferRequest(model_name="ris", id="7")
    request.inputs.add(name="image", datatype="BYTES", shape=[1, 1])
    request.raw_input_contents.append(b"x" * 90_000)
    check_grpc(request.SerializeToString(), LIMITS)
    request.inputs.add(name="expression", datatype="BYTES", shape=[1, 5])
    with pytest.raises(LimitError, match="5 expressions, at most 4"):
        check_grpc(request.SerializeToString(), LIMITS)


@pytest.mark.parametrize(
    ("sent", "status", "said"),
    [
        (message((1, 1), model=b"ris_fusion"), 403, "may ask the model ris"),
        (b"", 403, "may ask the model ris"),
        (message((1, 5)), 413, "5 expressions, at most 4"),
        (message((1, 1), raw=[b"x" * 2_000_000]), 413, "2000000 bytes, at most"),
        (message(*[(1, 1)] * 2000), 413, "more than 1000 fields"),
        (field(5, field(1, b"x") * 5000), 413, "more than 1000 fields"),
        (field(5, field(5, field(2, b"\1" * 50_000))), 413, "too many numbers"),
        (b"\xff" * 20, 400, "no message of Triton's protocol"),
        (field(1, b"ris")[:-1], 400, "no message of Triton's protocol"),
        (varint(9 << 3 | 3), 400, "no message of Triton's protocol"),
    ],
)
def test_what_would_harm_the_server_is_refused_over_grpc(sent, status, said):
    with pytest.raises(LimitError, match=said) as refused:
        check_grpc(sent, LIMITS)
    assert refused.value.status == status


def test_a_room_holds_so_many_requests_and_bytes():
    room = Room(requests=2, held_bytes=100)
    with room.place() as first, room.place() as second:
        first.hold(60)
        with pytest.raises(LimitError, match="busy with 2 requests") as refused, room.place():
            pass
        assert refused.value.status == 503
        with pytest.raises(LimitError, match="as many bytes as it may"):
            second.hold(50)
        first.hold(10)
        second.hold(90)
    with room.place() as after:
        after.hold(100)


@pytest.mark.parametrize(
    ("said", "sick"),
    [
        ("Stub process 'ris_0_0' is not healthy.", True),
        ("400: nothing fits \"Stub process 'ris_0_0' is not healthy.\"", False),
        ("", False),
    ],
)
def test_an_instance_is_sick_where_tritonserver_says_so_and_not_where_a_client_does(said, sick):
    room = Room(requests=2, held_bytes=100)
    room.look_at(said)
    assert room.sick == sick


@pytest.mark.parametrize(
    ("host", "name", "reach"),
    [
        ("127.0.0.1", "127.0.0.1", "127.0.0.1"),
        ("0.0.0.0", "0.0.0.0", "127.0.0.1"),
        ("::1", "[::1]", "[::1]"),
        ("::", "[::]", "[::1]"),
        ("localhost", "localhost", "localhost"),
    ],
)
def test_an_address_of_ipv6_is_in_brackets_before_a_port(host, name, reach):
    address = Address(host)
    assert (address.name, address.reach) == (name, reach)


def test_an_image_of_the_largest_size_fits_into_a_request():
    assert largest_request(Limits()) > Limits().image_bytes
    assert largest_request(Limits()) < Limits().held_bytes


def test_a_repository_without_limits_has_the_usual_ones(tmp_path):
    assert read_limits(tmp_path) == (Limits(), Limits().waiting)


def test_a_process_that_has_no_instances_has_none():
    assert instances_of(1 << 30) == set()
