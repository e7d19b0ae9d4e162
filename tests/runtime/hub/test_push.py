"""Publishing a bundle: its licence, its card, its files, and who may."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil

import numpy as np
import pytest
from click.testing import CliRunner

from ris.runtime import BUILT_IN, BundleError, HubError, load, open_bundle
from ris.runtime.bundle import sha256_of
from ris.runtime.commands import models
from ris.runtime.hub.address import parse
from ris.runtime.hub.card import model_card
from ris.runtime.hub.models import read_table
from ris.runtime.hub.push import push, require_licence
from ris.runtime.manifest_source import Published

ADDRESS = "hf://me/demo"


@pytest.fixture(autouse=True)
def built_in_table(monkeypatch):
    monkeypatch.delenv("RIS_MODELS", raising=False)


def run(*arguments):
    return CliRunner().invoke(models.main, [str(a) for a in arguments])


def test_a_bundle_comes_back_as_it_went(hub, picture, tmp_path):
    bundle = shutil.copytree(BUILT_IN, tmp_path / "bundle")
    (bundle / "engines").mkdir()
    (bundle / "engines" / "plan").write_bytes(b"of this machine")
    done = run("push", bundle, ADDRESS, "--licence", "apache-2.0")
    assert done.exit_code == 0, done.output
    commit = hub.repositories["me/demo"].branches["main"]
    files = hub.repositories["me/demo"].files("main")
    expected = {str(p.relative_to(BUILT_IN)) for p in BUILT_IN.rglob("*") if p.is_file()}
    assert set(files) == expected | {"README.md"}
    assert f"Published {len(files)} files: {hub.endpoint}/me/demo/commit/{commit}" in done.stdout
    assert f"ris-infer --bundle hf://me/demo@{commit}" in done.stdout
    assert not (bundle / "README.md").exists()

    run_on = {"engine": "onnxruntime", "device": "cpu"}
    with load(ADDRESS, **run_on) as model, load(BUILT_IN, **run_on) as built_in:
        found = model.segment(picture, "left man").mask
        np.testing.assert_array_equal(found, built_in.segment(picture, "left man").mask)


def test_large_files_are_sent_once(hub):
    push(open_bundle(BUILT_IN), parse(ADDRESS), "apache-2.0")
    uploads = [seen for seen in hub.requests if seen.method == "PUT"]
    assert len(uploads) > 5
    assert not any(seen.login for seen in uploads)
    hub.requests.clear()
    again = push(open_bundle(BUILT_IN), parse(ADDRESS), "apache-2.0")
    assert not [seen for seen in hub.requests if seen.method == "PUT"]
    assert str(again.address) == f"{ADDRESS}@{hub.repositories['me/demo'].branches['main']}"


def test_a_new_repository_may_be_private(hub):
    push(open_bundle(BUILT_IN), parse(ADDRESS), "apache-2.0", private=True)
    assert hub.repositories["me/demo"].private
    assert open_bundle(ADDRESS).manifest.family == "dfam"


def test_what_was_to_be_private_does_not_go_into_a_public_repository(hub):
    hub.repository("me/demo", {".gitattributes": b""})
    with pytest.raises(HubError) as caught:
        push(open_bundle(BUILT_IN), parse(ADDRESS), "apache-2.0", private=True)
    assert str(caught.value) == (
        f"{hub.endpoint}/me/demo is there already and is public; make it private on its page, or"
        " name another repository"
    )
    assert not [seen for seen in hub.requests if seen.method == "PUT"]
    assert set(hub.repositories["me/demo"].files("main")) == {".gitattributes"}

    hub.repositories["me/demo"].private = True
    push(open_bundle(BUILT_IN), parse(ADDRESS), "apache-2.0", private=True)
    assert "manifest.json" in hub.repositories["me/demo"].files("main")


@pytest.mark.parametrize("more", [{}, {"manifest.json": b'{"name": "a web page"}'}])
def test_somebody_elses_card_stays(hub, more):
    hub.repository("me/demo", {"README.md": b"# My thesis\n", **more})
    with pytest.raises(HubError, match=r"/me/demo has a README\.md that is not of ris-runtime; na"):
        push(open_bundle(BUILT_IN), parse(ADDRESS), "apache-2.0")
    assert hub.repositories["me/demo"].files("main") == {"README.md": b"# My thesis\n", **more}


@pytest.mark.parametrize("licence", [[], ["--licence", "mit"]])
def test_what_is_refused_is_refused_before_files_are_read(hub, monkeypatch, licence):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("ris.runtime.bundle.sha256_of", lambda path: pytest.fail("read first"))
    done = run("push", BUILT_IN, ADDRESS, *licence)
    assert done.exit_code == 2
    said = "there is no login here" if licence else "under the licence that you give it"
    assert said in done.stderr or "under the licence of its weights" in done.stderr


def test_files_of_the_bundle_before_go(hub, tmp_path):
    """And what else is in the repository stays."""
    older = shutil.copytree(BUILT_IN, tmp_path / "older")
    (older / "extra.bin").write_bytes(b"of the older one")
    manifest = json.loads((older / "manifest.json").read_text())
    manifest["files"]["extra.bin"] = sha256_of(older / "extra.bin")
    (older / "manifest.json").write_text(json.dumps(manifest))
    push(open_bundle(older), parse(ADDRESS), "apache-2.0")
    repository = hub.repositories["me/demo"]
    repository.commit({"notes.txt": b"mine"})
    assert "extra.bin" in repository.files("main")
    pushed = push(open_bundle(BUILT_IN), parse(ADDRESS), "apache-2.0")
    expected = {str(p.relative_to(BUILT_IN)) for p in BUILT_IN.rglob("*") if p.is_file()}
    assert set(repository.files("main")) == expected | {"README.md", "notes.txt"}
    assert pushed.files == len(expected) + 1


def test_the_card():
    bundle = open_bundle(BUILT_IN)
    card = model_card(bundle, parse(ADDRESS), "apache-2.0", None)
    head, text = re.fullmatch(r"---\n(.*?)\n---\n\n(.*)", card, re.DOTALL).groups()
    assert head.splitlines() == [
        "license: apache-2.0",
        "library_name: ris-runtime",
        "pipeline_tag: image-segmentation",
        "tags:",
        "- referring-image-segmentation",
        "- onnx",
        "- dfam",
    ]
    for fragment in (
        "# demo\n",
        "| family | `dfam` |",
        "| licence of this bundle | `apache-2.0` |",
        f"sha256 `{bundle.manifest.source.checkpoint_sha256}` |",
        "| precision | FP16, but for text_encoder, mask_decoder (FP32) |",
        "| says that nothing is there | yes |",
        f'ris-infer photo.jpg "left man" --bundle {ADDRESS}',
        f'with load("{ADDRESS}") as model:',
        f"mask IoU {bundle.manifest.mask_iou:.6f} at the least",
    ):
        assert fragment in text, text
    assert all(f"| {name} | " in text for name in bundle.manifest.parity)


def named(name, commit="c" * 40):
    """The demo's bundle as if it were exported by name."""
    bundle = open_bundle(BUILT_IN)
    published = Published(name, "YxZhang/evf-sam", commit)
    source = dataclasses.replace(bundle.manifest.source, published=published)
    return dataclasses.replace(bundle, manifest=dataclasses.replace(bundle.manifest, source=source))


def test_the_card_of_a_model_that_has_a_name():
    entry = read_table().named("evf-sam")
    card = model_card(named("evf-sam"), parse(ADDRESS), "apache-2.0", entry)
    assert 'base_model: "YxZhang/evf-sam"\n' in card
    assert f"| made from | {entry.title} (`evf-sam`) |" in card
    assert "| licence of the weights | `apache-2.0` |" in card
    assert f"| revision of the weights | `{'c' * 40}` |" in card
    assert f"| on the licences | {entry.licences.note} |" in card
    assert "not verified" not in card
    rela = read_table().named("rela-swin-base")
    unknown = model_card(named("x", None), parse(ADDRESS), "mit", rela)
    assert "| licence of the weights | not stated |" in unknown
    assert f"| made from | {rela.title} (`{rela.name}`), not verified: no hash is pub" in unknown


def test_a_name_with_marks_stays_in_its_cell():
    bundle = open_bundle(BUILT_IN)
    source = dataclasses.replace(bundle.manifest.source, checkpoint="a|b\n# c.pth")
    manifest = dataclasses.replace(bundle.manifest, source=source)
    card = model_card(dataclasses.replace(bundle, manifest=manifest), parse(ADDRESS), "mit", None)
    assert "`a\\|b\\n# c.pth`" in card


def test_a_card_warns_of_made_up_weights(tiny_bundle):
    card = model_card(open_bundle(tiny_bundle), parse(ADDRESS), "mit", None)
    assert "**The weights are made up. The masks mean nothing.**" in card


# Licences


def test_no_licence_no_publishing(hub):
    done = run("push", BUILT_IN, ADDRESS)
    assert done.exit_code == 2
    assert "a bundle is published under the licence of its weights; say which" in done.stderr
    assert hub.requests == []


def test_a_licence_that_contradicts_the_weights(hub):
    with pytest.raises(HubError) as caught:
        push(named("evf-sam"), parse(ADDRESS), "mit")
    assert str(caught.value) == (
        "the weights of evf-sam are under apache-2.0, which contradicts --licence mit; say"
        " --licence apache-2.0"
    )
    assert hub.requests == []
    assert require_licence("mit", read_table().named("rela-swin-base")) == "mit"  # not stated


def test_no_licence_is_proposed_where_none_is_stated(hub):
    entry = read_table().named("rela-swin-base")
    with pytest.raises(HubError) as caught:
        require_licence(None, entry)
    said = str(caught.value)
    assert "and rela-swin-base states none: Whether the repository's licence is meant" in said
    for one in (said, run("push", BUILT_IN, ADDRESS).stderr):
        assert "apache" not in one
        assert "--licence WORD" in one


def test_what_has_terms_is_not_published(hub):
    with pytest.raises(HubError, match="a bundle of lisa-7b-v1 is not published from here: its we"):
        push(named("lisa-7b-v1"), parse(ADDRESS), "apache-2.0")
    assert hub.requests == []


def test_a_name_that_the_table_does_not_have_is_not_published(hub):
    with pytest.raises(HubError) as caught:
        push(named("lab-own"), parse(ADDRESS), "apache-2.0")
    assert str(caught.value).startswith(
        "the bundle was made from lab-own, which the table of models does not have, so that its"
    )
    assert hub.requests == []


@pytest.mark.parametrize("word", ["", "Apache 2", "apache-2.0\nx: y", "MIT"])
def test_what_is_no_licence_word(word):
    with pytest.raises(HubError, match="is no licence word of a Hub"):
        require_licence(word, None)


def test_a_word_that_the_hub_does_not_know(hub):
    done = run("push", BUILT_IN, ADDRESS, "--licence", "nonsense")
    assert done.exit_code == 2
    assert "license is wrong" in done.stderr


# Who may


def test_without_a_login(hub, monkeypatch):
    import huggingface_hub

    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", "/nowhere/token")
    done = run("push", BUILT_IN, ADDRESS, "--licence", "mit")
    assert done.exit_code == 2
    assert "publishing at hf://me/demo: there is no login here; log in with `hf auth" in done.stderr


@pytest.mark.parametrize("part", ["/api/repos/create", "/commit/", "/upload/"])
def test_a_login_that_may_not(hub, part):
    hub.fails(part, status=403)
    done = run("push", BUILT_IN, ADDRESS, "--licence", "mit")
    assert done.exit_code == 2
    assert "publishing at hf://me/demo: this login may not do that (403)" in done.stderr


def test_a_folder_is_no_place_to_publish(hub):
    done = run("push", BUILT_IN, f"{ADDRESS}/fp16", "--licence", "mit")
    assert "a bundle is published as a repository of its own" in done.stderr


def test_a_damaged_bundle_is_not_published(hub, tmp_path):
    bundle = shutil.copytree(BUILT_IN, tmp_path / "bundle")
    (bundle / "tokenizer.json").write_text("{}")
    done = run("push", bundle, ADDRESS, "--licence", "mit")
    assert "is damaged" in done.stderr
    assert [seen.path for seen in hub.requests] == ["/api/whoami-v2"]
    with pytest.raises(BundleError):
        open_bundle(bundle)


def test_json(hub):
    data = json.loads(run("push", BUILT_IN, ADDRESS, "--licence", "mit", "--json").stdout)
    assert data["address"].startswith(f"{ADDRESS}@")
    assert data["files"] == len(hub.repositories["me/demo"].files("main"))
