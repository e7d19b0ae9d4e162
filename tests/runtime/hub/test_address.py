"""Addresses on a Hub, and the folders of its cache."""

from __future__ import annotations

from pathlib import Path

import pytest

from ris.engines.errors import HubError
from ris.runtime.hub.address import Address, address_of, is_address, parse

COMMIT = "0123456789" * 4


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("hf://org/name", Address("org/name")),
        ("hf://org/name/", Address("org/name")),
        ("hf://org/name@v1.0", Address("org/name", "v1.0")),
        (f"hf://org/na.me_2@{COMMIT}", Address("org/na.me_2", COMMIT)),
        ("hf://org/name/fp16", Address("org/name", None, "fp16")),
        ("hf://org/name@main/a/b", Address("org/name", "main", "a/b")),
        ("hf://org/name@refs/pr/1", Address("org/name", "refs/pr/1")),
        ("hf://org/name@refs/pr/1/fp16", Address("org/name", "refs/pr/1", "fp16")),
        ("hf://org/name@a%2Fb/c", Address("org/name", "a/b", "c")),
    ],
)
def test_addresses(text, address):
    assert parse(text) == address
    assert parse(str(address)) == address
    assert parse(Path(text)) == address  # which has one slash less
    assert is_address(text)
    assert is_address(Path(text))


@pytest.mark.parametrize(
    "text",
    [
        "hf://",
        "hf://name",
        "hf://org/name@",
        "hf://org/name@v1@v2",
        "hf://org/name/../other",
        "hf://org/name//b",
        "hf://../name",
        "hf://org/name@../../../../pwned",
        "hf://org/name@..%2F..%2F..%2F..%2Fpwned",
        "hf://org/name@a%2F%2Fb",
        "hf://org/name@a%00",
        "hf://org/name@.",
        "hf://org/-name",
        "hf://org/na me",
        "https://huggingface.co/org/name",
    ],
)
def test_what_is_no_address(text):
    with pytest.raises(HubError) as caught:
        parse(text)
    assert str(caught.value).startswith(f"{text} is no address on a Hub; write hf://ORGANISATION/")


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("hf://datasets/org/name", "a data set"),
        (Path("hf://datasets/org/name"), "a data set"),
        ("hf://spaces/org/name@main", "a space"),
    ],
)
def test_only_model_repositories_have_bundles(text, what):
    with pytest.raises(HubError) as caught:
        parse(text)
    assert str(caught.value) == f"{text} is {what}; a bundle is in a model repository"


@pytest.mark.parametrize("place", ["ris-bundle", "/a/hf:/b", "hf", Path("hf/a")])
def test_folders_are_no_addresses(place):
    assert not is_address(place)


def test_the_address_of_a_folder_of_the_cache():
    snapshot = Path("/home/me/.cache/huggingface/hub/models--org--na--me/snapshots") / COMMIT
    assert address_of(snapshot) == Address("org/na--me", COMMIT)
    assert address_of(snapshot / "a" / "b") == Address("org/na--me", COMMIT, "a/b")
    assert address_of(Path("/data/ris-bundle")) is None
    assert address_of(Path("/data/snapshots/x")) is None
    assert address_of(Path("/data/datasets--org--name/snapshots/x")) is None
