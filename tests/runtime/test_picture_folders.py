"""A folder as a phone or a Mac leaves it: which files are pictures, and what is said of others."""

from __future__ import annotations

import importlib.util
import os

import numpy as np
import pytest
from PIL import Image

from ris.engines.errors import ImageError
from ris.runtime import picture_folders
from ris.runtime.image import find_images


@pytest.fixture
def folder(tmp_path):
    top = tmp_path / "phone"
    (top / "__MACOSX").mkdir(parents=True)
    (top / ".thumbs").mkdir()
    image = Image.fromarray(np.zeros((4, 4, 3), np.uint8))
    for name in ("1.JPG", "2.jfif", "4.mpo", ".5.jpg", ".thumbs/6.jpg", "7.avif", "8.jpe"):
        image.save(top / name, "jpeg")
    for name in ("._1.JPG", "__MACOSX/._1.JPG", "Thumbs.db", ".DS_Store", "notes.txt"):
        (top / name).write_bytes(b"x")
    return top


def names(found, top):
    return [str(path.relative_to(top)) for path in found.images]


def test_hidden_files_are_left_alone(folder):
    found = find_images(folder)
    assert names(found, folder) == ["1.JPG", "2.jfif", "4.mpo", "7.avif", "8.jpe"]
    assert not found.passed_over
    assert not found.notes()


def test_what_looks_like_a_picture_is_counted_and_said(folder, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for name in ("a.HEIC", "b.heic", "c.cr2", "d.svg"):
        (folder / name).write_bytes(b"x")
    (folder / "e.jpg").symlink_to("nowhere")
    (folder / "f.png").mkdir()
    found = find_images(folder)
    assert len(found.images) == 5
    a, c, d, e = found.notes()
    assert a.startswith("passed over 2 .heic files, the first is ")
    assert a.endswith("a.HEIC: HEIC needs pillow-heif (pip install pillow-heif)")
    assert "1 .cr2 file, " in c
    assert "1 .svg file, " in d
    assert "convert it to JPEG or PNG" in d
    assert "1 .jpg file, " in e
    assert "a link to nothing" in e


def test_heic_is_taken_where_its_plug_in_is(folder, monkeypatch):
    (folder / "a.heic").write_bytes(b"x")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "pillow_heif")
    assert "a.heic" in names(find_images(folder), folder)


def test_linked_folders_are_followed_and_circles_end(folder, tmp_path):
    album = tmp_path / "album"
    album.mkdir()
    Image.new("L", (4, 4)).save(album / "p.png")
    (folder / "album").symlink_to(album)
    (folder / "again").symlink_to(album)
    (album / "back").symlink_to(folder)
    (folder / "here").symlink_to(".")
    found = names(find_images(folder), folder)
    assert found[-1] == os.path.join("again", "p.png")
    assert len(found) == 6


@pytest.mark.skipif(os.geteuid() == 0, reason="root may open everything")
def test_a_folder_that_cannot_be_opened_is_said(folder):
    (folder / "locked").mkdir(mode=0)
    assert "1 folder, the first is" in find_images(folder).notes()[0]


def test_the_folder_of_the_results_is_passed_over(folder):
    results = folder / "out" / "masks"
    results.mkdir(parents=True)
    Image.new("L", (4, 4)).save(results / "1.left-man.mask.png")
    Image.new("L", (4, 4)).save(folder / "out" / "own.png")
    (folder / "link").symlink_to(results)
    assert "out/masks/1.left-man.mask.png" in names(find_images(folder), folder)
    for given in (results, folder / "link", folder / "out" / ".." / "link"):
        found = find_images(folder, given)
        assert names(found, folder)[-1] == "out/own.png"
        assert len(found.images) == 6
        assert found.notes()[0].endswith("masks: the results are written there")
    # what is searched itself is never passed over
    assert find_images(folder, folder) == find_images(folder)
    assert len(find_images(results, results).images) == 1


def test_a_folder_without_a_picture_says_what_it_has(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImageError, match=r"has no images \(looked for \.apng"):
        find_images(tmp_path)
    (tmp_path / "a.heic").write_bytes(b"x")
    with pytest.raises(ImageError, match=r"has no images; passed over 1 \.heic file.*pillow-heif"):
        find_images(tmp_path)
    with pytest.raises(ImageError, match="has no images"):
        find_images(tmp_path / "nothere")


def test_every_suffix_is_of_a_format_that_pillow_has():
    Image.init()
    for suffix in picture_folders.IMAGE_SUFFIXES:
        # Pillow opens .mpo as a JPEG file, and has AVIF from 11.3 on
        assert Image.EXTENSION[suffix] in Image.OPEN or suffix in (".mpo", ".avif")
