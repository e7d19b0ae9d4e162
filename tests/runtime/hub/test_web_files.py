"""A file of a server that is no Hub: where it is kept, and what is verified of it."""

from __future__ import annotations

import hashlib
import types
from pathlib import Path

import pytest

from ris.engines.errors import HubError
from ris.runtime.hub import download, transfer
from ris.runtime.hub.download import WebFile, fetch_from_web

WEIGHTS = bytes(range(256)) * 400  # 102,400 bytes, 25 chunks
SHA256 = hashlib.sha256(WEIGHTS).hexdigest()


def test_a_file_of_another_server(hub):
    url = hub.url("sam.pth", WEIGHTS)
    file = WebFile(url, len(WEIGHTS), SHA256)
    hub.fails("/web/", break_after=50_000, times=1)
    hub.fails("/web/", break_after=0, times=5)
    with pytest.raises(HubError, match=r"the transfer of sam\.pth of 127\.0\.0\.1:\d+ broke off"):
        fetch_from_web(file)
    found = fetch_from_web(file)
    assert found.path.read_bytes() == WEIGHTS
    assert (found.path.name, found.commit) == ("sam.pth", None)
    assert hub.ranges()
    assert not any(seen.login for seen in hub.requests)
    hub.sent()
    assert fetch_from_web(file, verify=True) == found
    assert hub.sent() == 0


def test_a_file_of_another_server_whose_size_nobody_stated(hub):
    assert fetch_from_web(WebFile(hub.url("h.pth", WEIGHTS))).path.read_bytes() == WEIGHTS


def test_a_file_without_a_hash_is_begun_anew(hub):
    """Its first half may be of another version, which no hash would show."""
    url = hub.url("h.pth", WEIGHTS)
    hub.fails("/web/", break_after=50_000, times=2)  # the first is the question for the size
    hub.fails("/web/", break_after=0, times=5)
    with pytest.raises(HubError, match="broke off"):
        fetch_from_web(WebFile(url))
    assert hub.ranges()  # of the attempts of that call
    hub.sent()
    assert fetch_from_web(WebFile(url)).path.read_bytes() == WEIGHTS
    assert hub.ranges() == []


@pytest.mark.parametrize("status", [405, 501])
def test_a_server_that_answers_no_question_for_the_size(hub, status):
    url = hub.url("h.pth", WEIGHTS)
    hub.fails("/web/", status=status, times=1)
    assert fetch_from_web(WebFile(url)).path.read_bytes() == WEIGHTS


def test_a_damaged_file_of_another_server_stays_until_the_right_one_is_here(hub):
    file = WebFile(hub.url("sam.pth", WEIGHTS), len(WEIGHTS), SHA256)
    path = fetch_from_web(file).path
    path.write_bytes(b"damaged")
    hub.fails("/web/", status=500, times=1)
    with pytest.raises(HubError, match="its server answers 500"):
        fetch_from_web(file, verify=True)
    assert path.read_bytes() == b"damaged"
    assert fetch_from_web(file, verify=True).path.read_bytes() == WEIGHTS


def test_a_file_of_another_server_goes_where_it_can_be_kept(hub, tmp_path, monkeypatch):
    file = WebFile(hub.url("sam.pth", WEIGHTS), len(WEIGHTS), SHA256)
    monkeypatch.setattr(download, "cache_folders", lambda: [Path("/proc/no"), tmp_path / "yes"])
    path = fetch_from_web(file).path
    assert path.is_relative_to(tmp_path / "yes")
    assert download.is_cached(file)
    monkeypatch.setattr(download, "cache_folders", lambda: [Path("/proc/no")])
    with pytest.raises(HubError, match=r"^/proc/no.*sam\.pth of 127\.0\.0\.1"):
        fetch_from_web(file)
    usage = types.SimpleNamespace(free=1000)
    monkeypatch.setattr(transfer.shutil, "disk_usage", lambda folder: usage)
    monkeypatch.setattr(download, "cache_folders", lambda: [tmp_path / "full"])
    with pytest.raises(HubError, match="or set XDG_CACHE_HOME to a folder elsewhere"):
        fetch_from_web(file)


@pytest.mark.parametrize("end", ["", "..", "a/.."])
def test_an_address_that_ends_in_no_name(hub, end):
    with pytest.raises(HubError, match="does not end in the name of a file"):
        fetch_from_web(WebFile(f"https://example.org/{end}"))


def test_a_wrong_file_of_another_server(hub):
    with pytest.raises(HubError) as caught:
        fetch_from_web(WebFile(hub.url("sam.pth", WEIGHTS), None, "1" * 64))
    assert "is not the file that the table of models names" in str(caught.value)
    hub.fails("/web/gone", status=404)
    with pytest.raises(HubError, match=r"its server answers 404; check the name and the address"):
        fetch_from_web(WebFile(hub.url("gone", WEIGHTS)))
