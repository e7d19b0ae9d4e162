"""A file from a Hub: what is asked for, what is kept, and the sentence for whatever goes wrong."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import threading
import types
from pathlib import Path

import pytest

from ris.engines.errors import HubError
from ris.runtime.hub import transfer
from ris.runtime.hub.download import HubFile, WebFile, fetch, fetch_from_web

WEIGHTS = bytes(range(256)) * 400  # 102,400 bytes, 25 chunks
SHA256 = hashlib.sha256(WEIGHTS).hexdigest()
LARGE = HubFile("org/name", "model.bin")
SMALL = HubFile("org/name", "config.json")


@pytest.fixture
def stored(hub):
    """The Hub with a small and a large file, and its commit."""
    repository = hub.repository("org/name", {"model.bin": WEIGHTS, "config.json": b'{"a": 1}'})
    return types.SimpleNamespace(hub=hub, commit=repository.branches["main"], files=repository)


def refusal(file=LARGE, **options):
    with pytest.raises(HubError) as caught:
        fetch(file, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def partials():
    from huggingface_hub import constants

    return list(Path(constants.HF_HUB_CACHE).rglob("*.ris-partial"))


# What is asked for


def test_a_file_comes_once(stored):
    steps = []
    found = fetch(LARGE, lambda *step: steps.append(step))
    assert found.path.read_bytes() == WEIGHTS
    assert found.commit == stored.commit
    assert found.path.parent.name == stored.commit
    assert steps[0] == ("model.bin", 0, len(WEIGHTS))
    assert steps[-1] == ("model.bin", len(WEIGHTS), len(WEIGHTS))
    assert len(steps) > 20
    assert stored.hub.sent() == len(WEIGHTS)

    steps.clear()
    assert fetch(LARGE, lambda *step: steps.append(step)) == found
    assert (stored.hub.sent(), steps, partials()) == (0, [], [])


def test_huggingface_hub_finds_what_was_fetched(stored):
    """It is its own cache: another program asks for no byte of it."""
    from huggingface_hub import hf_hub_download, scan_cache_dir

    found = fetch(LARGE)
    stored.hub.sent()
    assert hf_hub_download("org/name", "model.bin") == str(found.path)
    assert stored.hub.sent() == 0
    [repository] = scan_cache_dir().repos
    assert (repository.repo_id, repository.size_on_disk) == ("org/name", len(WEIGHTS))


def test_a_commit_that_is_here_is_not_asked_about(stored):
    file = HubFile("org/name", "config.json", stored.commit)
    found = fetch(file)
    stored.hub.sent()
    assert fetch(file) == found
    assert stored.hub.requests == []


def test_a_branch_that_moved_on_is_followed(stored):
    old = fetch(SMALL)
    stored.files.commit({"config.json": b'{"a": 2}'})
    new = fetch(SMALL)
    assert new.commit != old.commit
    assert json.loads(new.path.read_text()) == {"a": 2}
    assert json.loads(old.path.read_text()) == {"a": 1}
    assert fetch(SMALL) == new


def test_a_file_that_did_not_change_with_its_branch_is_not_sent_again(stored):
    fetch(LARGE)
    stored.hub.sent()
    commit = stored.files.commit({"config.json": b"{}"})
    assert fetch(LARGE).commit == commit
    assert stored.hub.sent() == 0


def test_the_login_goes_to_the_hub_and_not_to_its_storage(stored):
    stored.files.private = True
    fetch(LARGE)
    logins = {
        place: [seen.login for seen in stored.hub.requests if seen.path.startswith(f"/{place}/")]
        for place in ("org", "cdn")
    }
    assert set(logins["org"]) == {True}
    assert set(logins["cdn"]) == {False}


def test_a_data_set(hub):
    hub.repository("datasets/org/set", {"refs.json": b"[]"})
    found = fetch(HubFile("org/set", "refs.json", kind="dataset"))
    assert found.path.read_text() == "[]"
    assert "datasets--org--set" in str(found.path)


# What broke off goes on


def test_a_broken_transfer_goes_on_in_the_same_call(stored):
    stored.hub.fails("/cdn/", break_after=50_000, times=1)
    assert fetch(LARGE).path.read_bytes() == WEIGHTS
    [asked] = stored.hub.ranges()
    start = int(asked.removeprefix("bytes=").removesuffix("-"))
    assert 0 < start <= 50_000
    assert stored.hub.sent() == 50_000 + len(WEIGHTS) - start


def test_what_broke_off_goes_on_in_the_next_call(stored):
    """And the next call is another process, as after a Ctrl-C."""
    stored.hub.fails("/cdn/", break_after=30_000, times=1)
    stored.hub.fails("/cdn/", break_after=0, times=5)
    said = refusal()
    assert said.startswith("the transfer of model.bin of org/name broke off (")
    assert said.endswith("what was downloaded is kept, the same command goes on from there")
    [partial] = partials()
    kept = partial.stat().st_size
    assert 0 < kept <= 30_000
    stored.hub.sent()

    code = (
        "from ris.runtime.hub.download import HubFile, fetch\n"
        "print(fetch(HubFile('org/name', 'model.bin')).path)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).read_bytes() == WEIGHTS
    assert stored.hub.ranges() == [f"bytes={kept}-"]
    assert stored.hub.sent() == len(WEIGHTS) - kept
    assert partials() == []


def test_a_stop_by_the_user_keeps_what_came(stored):
    def stop(name, done, total):
        if done > 20_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(LARGE, stop)
    [partial] = partials()
    kept = partial.stat().st_size
    assert kept > 20_000
    stored.hub.sent()
    assert fetch(LARGE).path.read_bytes() == WEIGHTS
    assert stored.hub.sent() == len(WEIGHTS) - kept


def test_a_partial_file_that_is_too_long_is_begun_anew(stored):
    blobs = fetch(SMALL).path.resolve().parent
    (blobs / f"{SHA256}.ris-partial").write_bytes(b"x" * (len(WEIGHTS) + 1))
    assert fetch(LARGE).path.read_bytes() == WEIGHTS


def test_two_at_once_ask_for_it_once(stored):
    stored.hub.fails("/cdn/", seconds=0.2)
    found = []
    threads = [threading.Thread(target=lambda: found.append(fetch(LARGE))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3
    assert len({one.path for one in found}) == 1
    assert stored.hub.sent() == len(WEIGHTS)


# Hashes


def test_other_bytes_than_the_hubs_are_refused_and_removed(stored):
    stored.hub.fails("/cdn/", spoilt=True, times=1)
    said = refusal()
    assert "model.bin of org/name is not the file that the Hub names: its hash is" in said
    assert f"{SHA256} was expected. It was removed and is not used" in said
    assert partials() == []
    assert fetch(LARGE).path.read_bytes() == WEIGHTS


def test_a_small_file_is_held_to_gits_hash(stored):
    stored.hub.fails("config.json", spoilt=True)
    assert "config.json of org/name is not the file that the Hub names" in refusal(SMALL)


def test_another_file_than_the_expected_one_is_not_downloaded(stored):
    said = refusal(HubFile("org/name", "model.bin", sha256="0" * 64))
    assert said.startswith("model.bin of org/name was replaced: the Hub has a file of hash")
    assert "the table of models names 000" in said
    assert stored.hub.sent() == 0


def test_a_damaged_file_in_the_cache_is_fetched_again_where_it_is_verified(stored):
    blob = fetch(LARGE).path.resolve()
    blob.write_bytes(b"x" + WEIGHTS[1:])
    assert fetch(LARGE).path.read_bytes() != WEIGHTS  # to hash gigabytes is somebody else's affair
    assert fetch(LARGE, verify=True).path.read_bytes() == WEIGHTS


def test_a_blob_that_programs_share_stays(stored, tmp_path):
    """huggingface_hub may keep a blob as a link to a store of all repositories."""
    found = fetch(LARGE)
    blob = found.path.parent / found.path.readlink()
    shared = tmp_path / ("f" * 64)
    blob.rename(shared)
    blob.symlink_to(shared)
    stored.hub.sent()
    assert fetch(LARGE, verify=True) == found
    assert stored.hub.sent() == 0
    shared.write_bytes(b"damaged")
    assert fetch(LARGE, verify=True).path.read_bytes() == WEIGHTS
    assert shared.exists()


def test_a_damaged_file_stays_until_the_right_one_is_here(stored, monkeypatch):
    from huggingface_hub import constants

    found = fetch(LARGE)
    blob = found.path.resolve()
    blob.write_bytes(b"damaged")
    stored.hub.fails("/cdn/", status=500, times=1)
    assert "answers 500" in refusal(verify=True)
    assert blob.read_bytes() == b"damaged"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    said = refusal(verify=True)
    assert said.startswith(f"model.bin of org/name is damaged in the cache, at {blob}, and")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert fetch(LARGE, verify=True) == found
    assert found.path.read_bytes() == WEIGHTS


@pytest.mark.parametrize("revision", ["main", "commit"])
@pytest.mark.parametrize("name", ["model.bin", "config.json"])
def test_a_good_file_of_the_cache_that_is_not_the_expected_one_stays(stored, name, revision):
    """What the Hub has under its own hash is another program's good file."""
    at = stored.commit if revision == "commit" else revision
    found = fetch(HubFile("org/name", name))
    content = found.path.read_bytes()
    said = refusal(HubFile("org/name", name, at, sha256="0" * 64), verify=True)
    assert f"{name} of org/name" in said
    assert "was replaced: the Hub has a file of hash" in said
    assert found.path.read_bytes() == content


def test_a_blob_that_is_there_is_hashed_where_a_hash_is_expected(stored):
    blobs = fetch(SMALL).path.resolve().parent
    (blobs / SHA256).write_bytes(b"damaged")
    path = fetch(HubFile("org/name", "model.bin", sha256=SHA256)).path
    assert path.read_bytes() == WEIGHTS
    path.unlink()
    (blobs / SHA256).write_bytes(b"damaged")
    assert fetch(LARGE, verify=True).path.read_bytes() == WEIGHTS


def test_a_file_that_is_no_link_is_hashed_and_replaced(stored):
    """As where the disk has no links."""
    found = fetch(LARGE)
    blob = found.path.resolve()
    found.path.unlink()
    blob.rename(found.path)
    found.path.write_bytes(b"damaged")
    file = HubFile("org/name", "model.bin", stored.commit, sha256=SHA256)
    assert fetch(file, verify=True).path.read_bytes() == WEIGHTS


def test_a_file_that_is_another_when_the_hub_is_asked_again_is_removed(stored, monkeypatch):
    """huggingface_hub links it to where it belongs, and asks once more what it is."""
    import huggingface_hub

    other = b"other bytes" * 100
    name = hashlib.sha256(other).hexdigest()
    stored.hub.storage[name] = other
    original = huggingface_hub.hf_hub_download

    def again(*arguments, **options):
        place = {"Location": f"{stored.hub.cdn}/cdn/{name}"}
        about = {"X-Linked-Etag": f'"{name}"', "X-Linked-Size": str(len(other)), **place}
        stored.hub.fails("/resolve/", headers=about)
        return original(*arguments, **options)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", again)
    said = refusal()
    assert f"is not the file that the Hub names: its hash is {name}, {SHA256} was" in said
    cache = Path(huggingface_hub.constants.HF_HUB_CACHE)
    assert not [path for path in cache.rglob("*") if path.is_file() and path.read_bytes() == other]
    assert not list(cache.rglob("snapshots/*/model.bin"))


@pytest.mark.parametrize(
    "headers",
    [
        {"X-Linked-Etag": '"../../../../pwned"'},
        {"X-Linked-Etag": '"short"'},
        {"X-Repo-Commit": "../../../../pwned"},
    ],
)
def test_what_a_server_says_becomes_no_path(stored, tmp_path, headers):
    stored.hub.fails("/resolve/", headers=headers)
    assert "does not answer as a Hub does; check HF_ENDPOINT" in refusal()
    assert not list(tmp_path.rglob("*pwned*"))
    assert stored.hub.sent() == 0


def test_a_file_that_is_too_large_is_not_downloaded(stored):
    file = HubFile("org/name", "model.bin", largest=1 << 16)
    assert refusal(file) == "model.bin of org/name has more than 0 MB"
    assert stored.hub.sent() == 0


# What goes wrong


@pytest.mark.parametrize("status", [401, 403])
def test_a_refusal_is_not_answered_from_the_cache(stored, status):
    fetch(SMALL)
    stored.hub.fails("/resolve/", status=status)
    assert f"({status})" in refusal(SMALL)


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_hub_that_is_not_well_is_answered_from_the_cache(stored, status):
    found = fetch(SMALL)
    stored.hub.fails("/resolve/", status=status)
    with pytest.warns(UserWarning, match="of the cache stands for main"):
        assert fetch(SMALL) == found


def test_a_login_in_an_address_is_not_shown(stored, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://me:secret@127.0.0.1:9")
    template = "http://me:secret@127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    said = refusal()
    assert "http://127.0.0.1:9 cannot be reached" in said
    assert "secret" not in said
    with pytest.raises(HubError, match=r"a\.pth of 127\.0\.0\.1:9: its server cannot") as caught:
        fetch_from_web(WebFile("http://me:secret@127.0.0.1:9/a.pth"))
    assert "secret" not in str(caught.value)


def test_without_huggingface_hub(monkeypatch):
    needed = "models by name and hf:// addresses need huggingface_hub 2"
    monkeypatch.setattr(sys.modules["huggingface_hub"], "__version__", "0.36.2")
    assert refusal() == f'{needed}, here is 0.36.2: pip install ".[hub]"'
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert refusal() == f'{needed}: pip install ".[hub]"'


@pytest.mark.parametrize(
    ("fault", "fragments"),
    [
        ({"status": 401}, ["wants a login (401)", "log in with `hf auth login`", "HF_TOKEN"]),
        ({"status": 403}, ["this login may not do that (403)", "HF_TOKEN"]),
        ({"status": 403, "code": "GatedRepo"}, ["their terms to be accepted first", "/org/name"]),
        ({"status": 404, "code": "RepoNotFound"}, ["there is no org/name at http", "check the"]),
        ({"status": 404, "code": "RevisionNotFound"}, ["has no such revision"]),
        ({"status": 404, "code": "EntryNotFound"}, ["has no such file"]),
        ({"status": 429}, ["answers 429", "asked too often", "what was downloaded is kept"]),
        ({"status": 500}, ["answers 500", "a fault over there", "what was downloaded is kept"]),
        ({"status": 503}, ["answers 503", "run again later"]),
    ],
)
def test_what_the_hub_refuses(stored, fault, fragments):
    stored.hub.fails("/resolve/", **fault)
    said = refusal()
    for fragment in ("model.bin of org/name", *fragments):
        assert fragment in said
    assert partials() == []


def test_a_repository_that_is_not_there(hub):
    """The Hub does not tell that from a private one, and so neither can the sentence."""
    assert refusal(HubFile("org/nothing", "model.bin")).startswith(
        f"model.bin of org/nothing: {hub.endpoint} wants a login (401), because org/nothing is"
        " private, or is not there, or the token has expired;"
    )


def test_what_breaks_between_the_question_and_the_file(stored):
    stored.hub.fails("/cdn/", status=500)
    assert "answers 500" in refusal()


def test_offline(stored, monkeypatch):
    from huggingface_hub import constants

    found = fetch(SMALL)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert fetch(SMALL) == found
    said = refusal()
    assert said.startswith("model.bin of org/name is not in the cache ")
    assert "HF_HUB_OFFLINE forbids to download it; unset that" in said


def test_a_hub_that_cannot_be_reached(stored, monkeypatch):
    """What was fetched before stands for its branch; all else is a sentence."""
    from huggingface_hub import constants

    found = fetch(SMALL)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    template = "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    stands = f"cannot be reached .* Commit {found.commit[:12]} of the cache stands for main"
    with pytest.warns(UserWarning, match=stands):
        assert fetch(SMALL) == found
    said = refusal()
    assert "http://127.0.0.1:9 cannot be reached (" in said
    assert "check the connection, and HTTPS_PROXY and HF_ENDPOINT" in said


def test_a_server_that_is_no_hub(hub, monkeypatch):
    from huggingface_hub import constants

    hub.web["/org/name/resolve/main/model.bin"] = b"a login page of a hotel"
    said = refusal()
    assert f"{constants.ENDPOINT} does not answer as a Hub does; check HF_ENDPOINT" in said


def test_a_file_that_went_while_the_hub_was_away_is_still_missed(stored):
    """A branch that is gone is not answered from the cache."""
    fetch(SMALL)
    stored.hub.fails("/resolve/", status=404, code="RevisionNotFound")
    assert "has no such revision" in refusal(SMALL)


def test_a_server_that_is_slow_once(stored, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.2)
    stored.hub.fails("/cdn/", seconds=2, times=1)
    assert fetch(LARGE).path.read_bytes() == WEIGHTS


def test_a_full_disk_is_said_before_the_download(stored, monkeypatch):
    usage = types.SimpleNamespace(free=1000)
    monkeypatch.setattr(transfer.shutil, "disk_usage", lambda folder: usage)
    said = refusal()
    assert "model.bin of org/name needs 1 MB more than the disk of" in said
    assert "set HF_HOME to a folder elsewhere. What was downloaded is kept" in said
    assert stored.hub.sent() == 0


def test_a_disk_that_becomes_full(stored, monkeypatch):
    def write(self, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(transfer._Counted, "write", write)
    assert "the disk is full, and model.bin of org/name does not fit" in refusal()


def test_a_cache_that_cannot_be_written(stored, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", "/proc/nothing")
    said = refusal()
    assert said.startswith("/proc/nothing")
    assert "model.bin of org/name" in said
