"""What the Hub of `hub_server` answers to who publishes: repositories, large files, commits."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from typing import Any

_PREUPLOAD = re.compile(r"/api/models/([^/]+/[^/]+)/preupload/(.+)")
_COMMIT = re.compile(r"/api/models/([^/]+/[^/]+)/commit/(.+)")
_INFO = re.compile(r"/api/models/([^/]+/[^/]+)/revision/(.+)")
_MAIN = re.compile(r"/api/models/([^/]+/[^/]+)")
_BATCH = re.compile(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch")
LARGE = (".data", ".onnx", ".npz", ".bin", ".pth", ".safetensors")


def answer(handler: Any, path: str, query: dict[str, list[str]], body: bytes) -> None:
    """Answers a request that is no download."""
    hub = handler.hub
    if path.startswith("/upload/"):
        oid = path.removeprefix("/upload/")
        if hashlib.sha256(body).hexdigest() != oid:
            return handler.error(400, None)
        hub.storage[oid] = body
        return handler.json({})
    if not handler.seen.login:
        return handler.error(401, None)
    if path == "/api/whoami-v2":
        return handler.json({"name": "somebody", "type": "user"})
    if path == "/api/validate-yaml":
        return _validate(handler, json.loads(body)["content"])
    if path == "/api/repos/create":
        return _create(handler, json.loads(body))
    if found := _BATCH.fullmatch(path):
        return _batch(handler, json.loads(body))
    if found := _MAIN.fullmatch(path):
        path = f"{path}/revision/main"
    for pattern, act in ((_PREUPLOAD, _preupload), (_COMMIT, _commit), (_INFO, _info)):
        if found := pattern.fullmatch(path):
            repository = hub.repositories.get(found[1])
            if repository is None:
                return handler.error(404, "RepoNotFound")
            if found[2] != "main" and repository.sha(found[2]) is None:
                return handler.error(404, "RevisionNotFound")
            return act(handler, found[1], found[2], body)
    return handler.error(404, None)


def _create(handler: Any, asked: dict[str, Any]) -> None:
    name = f"{asked['organization']}/{asked['name']}"
    if name in handler.hub.repositories:
        return handler.json({"url": f"{handler.hub.endpoint}/{name}", "id": name}, 409)
    handler.hub.repository(name).private = asked.get("visibility") == "private"
    handler.json({"url": f"{handler.hub.endpoint}/{name}", "id": name})


def _validate(handler: Any, card: str) -> None:
    """The real one knows all licences; this one, that there is a head with one licence."""
    head = re.match(r"---\n(.*?)\n---\n", card, re.DOTALL)
    found = re.findall(r"^license: (.+)$", head[1] if head else "", re.MULTILINE)
    errors = [] if len(found) == 1 and found[0] != "nonsense" else [{"message": "license is wrong"}]
    handler.json({"warnings": [], "errors": errors}, 400 if errors else 200)


def _preupload(handler: Any, name: str, revision: str, body: bytes) -> None:
    files = handler.hub.repositories[name].files(revision) or {}

    def mode(file: dict[str, Any]) -> dict[str, Any]:
        large, content = file["path"].endswith(LARGE), files.get(file["path"])
        oid = None
        if content is not None and large:
            oid = hashlib.sha256(content).hexdigest()
        elif content is not None:
            oid = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        upload = "lfs" if large else "regular"
        return {"path": file["path"], "uploadMode": upload, "shouldIgnore": False, "oid": oid}

    handler.json({"files": [mode(file) for file in json.loads(body)["files"]]})


def _batch(handler: Any, asked: dict[str, Any]) -> None:
    hub = handler.hub

    def one(wanted: dict[str, Any]) -> dict[str, Any]:
        known = {"oid": wanted["oid"], "size": wanted["size"]}
        if wanted["oid"] in hub.storage:
            return known
        href = f"{hub.cdn}/upload/{wanted['oid']}"
        return {**known, "actions": {"upload": {"href": href, "header": {}}}}

    handler.json({"transfer": "basic", "objects": [one(wanted) for wanted in asked["objects"]]})


def _commit(handler: Any, name: str, revision: str, body: bytes) -> None:
    hub, files, gone = handler.hub, {}, set()
    for line in body.splitlines():
        entry = json.loads(line)
        value = entry["value"]
        if entry["key"] == "file":
            files[value["path"]] = base64.b64decode(value["content"])
        elif entry["key"] == "lfsFile":
            files[value["path"]] = hub.storage[value["oid"]]
        elif entry["key"] == "deletedFile":
            gone.add(value["path"])
    for content in files.values():
        hub.storage.setdefault(hashlib.sha256(content).hexdigest(), content)
    sha = hub.repositories[name].commit(files, revision, gone)
    handler.json({"commitUrl": f"{hub.endpoint}/{name}/commit/{sha}", "commitOid": sha})


def _info(handler: Any, name: str, revision: str, body: bytes) -> None:
    repository = handler.hub.repositories[name]
    siblings = [{"rfilename": file} for file in repository.files(revision) or {}]
    about = {"id": name, "sha": repository.sha(revision), "private": repository.private}
    handler.json({**about, "siblings": siblings})
