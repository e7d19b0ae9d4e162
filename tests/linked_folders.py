"""A bundle's files as links, in the layouts of programs that keep files by their hashes."""

from __future__ import annotations

import hashlib
import os
import shutil


def hub(bundle, folder):
    """The layout of huggingface_hub: every file a link to one blob, in one folder, by its hash."""
    snapshot, blobs = folder / "snapshots" / "abc", folder / "blobs"
    blobs.mkdir(parents=True)
    for file in filter(lambda file: file.is_file(), bundle.rglob("*")):
        blob = blobs / hashlib.sha256(file.read_bytes()).hexdigest()
        shutil.copyfile(file, blob)
        link = snapshot / file.relative_to(bundle)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    return snapshot


def annex(bundle, folder):
    """The layout of git-annex: every file a link to one in a folder of its own."""
    tree = folder / "tree"
    for file in filter(lambda file: file.is_file(), bundle.rglob("*")):
        name = hashlib.sha256(file.read_bytes()).hexdigest()
        real = folder / ".git" / "annex" / "objects" / name / name
        real.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, real)
        link = tree / file.relative_to(bundle)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(real)
    return tree


def folders(bundle, folder):
    """A link to the folder of the graphs alone."""
    copy = shutil.copytree(bundle, folder / "copy")
    (copy / "graphs").rename(folder / "elsewhere")
    (copy / "graphs").symlink_to(folder / "elsewhere")
    return copy
