"""The published evaluators once more, in plain loops, to check the product's against.

It is written from the rules alone and shares nothing with the product. What a loader stops at with
an error is not restated. Numbers and formulas follow the authors' repositories as the rules have
them: LAVT (yz93/LAVT-RIS), ReLA (henghuiding/ReLA), released (hitachi-rd-cv/dfam), DMMI
(toggle1995/RIS-DMMI), CGFormer (SooLab/CGFormer), LISA (dvlab-research/LISA).
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as coco

LIMITS = (0.5, 0.6, 0.7, 0.8, 0.9)
ONE_OBJECT = ("refcoco", "refcoco+", "refcocog")
f32 = np.float32


@dataclass
class Row:
    """An expression that is asked, and what was answered."""

    question: tuple[int, int, int, str]
    """ref_id, sent_id, image_id and the text."""

    category: str | None
    """The category that the released code's model gets; None under the others."""

    truth: np.ndarray
    """(H, W) uint8 of 0 and 1, at the size at which it is compared."""

    pred: np.ndarray
    """The answer's mask, the same shape and type."""

    refused: bool
    """The model says that there is no target; False where its evaluator does not ask."""

    targeted: bool
    """There is a target, by the reference and not by the mask."""

    def counted(self) -> tuple[int, int]:
        """I and U, pixels of intersection and union."""
        both, either = self.truth & self.pred, self.truth | self.pred
        return int(np.count_nonzero(both)), int(np.count_nonzero(either))


def restated(
    folder: Path, protocol: str, data: str, split_by: str, split: str, predictions: Path
) -> dict:
    """What an evaluator asks, compares and finds.

    Args:
        folder: Holds the data set's folder.
        protocol: One of lavt, rela, released, dmmi, cgformer, lisa.
        data: One of refcoco, refcoco+, refcocog, grefcoco, ref-zom.
        split_by: As in the name of the list of references.
        split: As its authors ask for it.
        predictions: A JSONL file with `ref_id`, `sent_id`, `mask` and `tie` by side, `nt_logits`.

    Returns:
        `questions`, `categories`, `truth`, `masks` and `added` have an entry for each expression
        in the order asked: ref_id, sent_id, image_id and text; the category or None; the truth and
        the answer's mask as (H, W) uint8; what is added to the sums, I and U. `metrics` has the
        figures under the authors' names.
    """
    rows = list(asked(folder / data, protocol, data, split_by, split, predictions))
    if protocol == "released" and data != "ref-zom":
        added, metrics = released(rows)
    elif protocol == "released":
        added, metrics = released_on_ref_zom(rows)
    elif protocol == "rela":
        added, metrics = rela(rows)
    elif protocol == "cgformer":
        added, metrics = cgformer(rows)
    elif protocol == "lisa":
        added, metrics = lisa(rows)
    else:
        added, metrics = lavt(rows, general=data == "ref-zom")
    return {
        "questions": [row.question for row in rows],
        "categories": [row.category for row in rows],
        "truth": [row.truth for row in rows],
        "masks": [row.pred for row in rows],
        "added": added,
        "metrics": metrics,
    }


# what is asked


def references(folder: Path, data: str, split_by: str) -> list[dict]:
    """The list of references in the order of its file."""
    if data == "grefcoco" and not (folder / f"grefs({split_by}).p").is_file():
        return json.loads((folder / f"grefs({split_by}).json").read_text())
    name = f"grefs({split_by}).p" if data == "grefcoco" else f"refs({split_by}).p"
    return pickle.loads((folder / name).read_bytes())


def in_split(data: str, own: str, wanted: str) -> bool:
    """Whether a reference of split `own` is asked in the split `wanted`."""
    if data != "grefcoco" and wanted in ("testA", "testB", "testC"):
        return wanted[-1] in own
    if data != "grefcoco" and wanted == "test":
        return "test" in own
    return own == wanted


def asked(
    folder: Path, protocol: str, data: str, split_by: str, split: str, predictions: Path
) -> Iterator[Row]:
    """The rows of a split in the order asked.

    Args:
        folder: The data set's own folder.
        protocol: As for `restated`.
        data: As for `restated`.
        split_by: As for `restated`.
        split: As for `restated`.
        predictions: As for `restated`.
    """
    instances = json.loads((folder / "instances.json").read_text())
    annotations = {entry["id"]: entry for entry in instances["annotations"]}
    images = {entry["id"]: entry for entry in instances["images"]}
    names = {entry["id"]: entry["name"] for entry in instances["categories"]}
    lines = map(json.loads, predictions.read_text().splitlines())
    answers = {(line["ref_id"], line["sent_id"]): line for line in lines}
    released_code = protocol == "released" and data != "ref-zom"
    side = 1024 if released_code else 480
    refusing = protocol == "rela" or (protocol == "released" and data not in ONE_OBJECT)

    refs = [r for r in references(folder, data, split_by) if in_split(data, r["split"], split)]
    truths = {}
    for ref in refs:
        objects = [annotations[number] for number in object_ids(ref)]
        if protocol != "rela" and not released_code:
            truths[ref["ref_id"]] = own_size_truth(objects, images[ref["image_id"]], protocol)
        elif data == "grefcoco" or valid_polygons(objects[0]):  # else the reference is dropped
            truths[ref["ref_id"]] = scaled_truth(objects, images[ref["image_id"]], side)
    # Ref-ZOM is loaded by sentence: of two references with the same one the later has the truth
    last = {sentence["sent_id"]: ref for ref in refs for sentence in ref["sentences"]}

    for ref in refs:
        if ref["ref_id"] not in truths:
            continue
        category = None
        if released_code:
            category = "background" if data == "grefcoco" else names[ref["category_id"]]
        for sentence in sentences(ref, protocol, data):
            number = sentence["sent_id"]
            owner = last[number] if data == "ref-zom" else ref
            answer = answers[ref["ref_id"], number]
            text = sentence["raw"]
            if protocol in ("cgformer", "lisa"):
                text = sentence["sent"].strip()
            if protocol == "lisa":
                text = text.lower()
            yield Row(
                question=(ref["ref_id"], number, ref["image_id"], text),
                category=category,
                truth=truths[owner["ref_id"]],
                pred=answered(answer, side, protocol, images[ref["image_id"]]),
                refused=refusing and refuses(answer),
                targeted=bool(object_ids(owner)),
            )


def sentences(ref: dict, protocol: str, data: str) -> list[dict]:
    """The sentences of a reference that are asked."""
    if protocol == "lavt" or (protocol == "dmmi" and data != "ref-zom"):
        return ref["sentences"][: len(ref["sent_ids"])]
    return ref["sentences"]


def object_ids(ref: dict) -> list[int]:
    """The annotations that a reference means."""
    if ref.get("source") == "zero":
        return []
    ids = ref["ann_id"] if isinstance(ref["ann_id"], list) else [ref["ann_id"]]
    return [] if ids == [-1] else ids


# truth


def own_size_truth(objects: list[dict], image: dict, protocol: str) -> np.ndarray:
    """The mask of LAVT and DMMI, resized to 480 x 480; CGFormer's and LISA's of own size."""
    height, width = image["height"], image["width"]
    layers = np.zeros((height, width), np.uint8)
    for entry in objects:
        code = entry["segmentation"]
        if isinstance(code[0], list):
            code = coco.frPyObjects(code, height, width)
        layers += coco.decode(code).sum(axis=2).astype(np.uint8)
    mask = (layers != 0 if protocol in ("dmmi", "released") else layers == 1).astype(np.uint8)
    if protocol in ("cgformer", "lisa"):
        return mask
    resized = Image.fromarray(mask).resize((480, 480), Image.Resampling.NEAREST)
    return np.asarray(resized)


def valid_polygons(entry: dict) -> list[list]:
    """The polygons that ReLA and the released code use."""
    return [p for p in entry["segmentation"] if len(p) % 2 == 0 and len(p) >= 6]


def scaled_truth(objects: list[dict], image: dict, side: int) -> np.ndarray:
    """The polygons scaled, then rasterised at (side, side): the union of all objects."""
    merged = np.zeros((side, side), np.uint8)
    for entry in objects:
        if entry["iscrowd"]:
            continue
        polygons = []
        for polygon in valid_polygons(entry):
            points = np.asarray(polygon).reshape(-1, 2)
            # in place: whole numbers stay whole, so that what is behind the point is cut off
            points[:, 0] = points[:, 0] * (side * 1.0 / image["width"])
            points[:, 1] = points[:, 1] * (side * 1.0 / image["height"])
            polygons.append(points.reshape(-1).astype(float).tolist())
        merged |= coco.decode(coco.frPyObjects(polygons, side, side)).any(axis=2)
    return merged


# the answer


def refuses(answer: dict) -> bool:
    """The sigmoid of no target is the greater one, in float32."""
    target, none = (f32(1) / (f32(1) + np.exp(f32(-logit))) for logit in answer["nt_logits"])
    return bool(none > target)


def answered(answer: dict, side: int, protocol: str, image: dict) -> np.ndarray:
    """The answer's mask where it is compared; what is tied is background."""
    mask = coco.decode(answer["mask"][str(side)])
    if protocol == "cgformer":
        inside, outside = (1 / (1 + np.exp(-logit)) for logit in (4.0, -6.0))
        down = bicubic(np.where(mask == 1, inside, outside), image["height"])
        return (bicubic(down.T, image["width"]).T > 0.5).astype(np.uint8)
    if answer["tie"]:
        mask = mask & (1 - coco.decode(answer["tie"][str(side)]))
    if protocol == "lisa":
        size = image["width"], image["height"]
        return np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST))
    return mask


def bicubic(values: np.ndarray, m: int) -> np.ndarray:
    """(n, W) to (m, W): PyTorch's bicubic with align_corners=True along the first axis."""
    a, n = -0.75, len(values)
    source = np.arange(m) * (n - 1) / (m - 1)
    floor = np.floor(source).astype(int)
    t = source - floor
    found = np.zeros((m, values.shape[1]))
    for tap, d in ((-1, t + 1), (0, t), (1, 1 - t), (2, 2 - t)):
        near = ((a + 2) * d - (a + 3)) * d * d + 1
        far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
        weight = near if tap in (0, 1) else far
        found += weight[:, None] * values[np.clip(floor + tap, 0, n - 1)]
    return found


# the figures


def lavt(rows: list[Row], general: bool) -> tuple[list, dict]:
    """LAVT's figures; with `general` DMMI's on Ref-ZOM."""
    added, ious, right, sum_i, sum_u = [], [], [], 0, 0
    for row in rows:
        if general and not row.targeted:
            right.append(0 if row.pred.any() else 1)
            added.append((0, 0))
            continue
        i, u = row.counted()
        ious.append(i / u if u else 0.0)
        sum_i, sum_u = sum_i + i, sum_u + u
        added.append((i, u))
    metrics = {
        "oIoU": sum_i * 100 / sum_u,
        "mIoU": 100 * float(np.mean(ious)),
        "cum_I": sum_i,
        "cum_U": sum_u,
        "count": len(ious),
    }
    for x in LIMITS:
        metrics[f"Pr@{x}"] = sum(iou >= x for iou in ious) * 100 / len(ious)
    if general:
        metrics |= {"acc": 100 * float(np.mean(right)), "zero_count": len(right)}
    return added, metrics


def cgformer(rows: list[Row]) -> tuple[list, dict]:
    """CGFormer's figures, in percent as its log has them."""
    added = [row.counted() for row in rows]
    ious = [i / (u + 1e-6) for i, u in added]
    sum_i, sum_u = sum(i for i, _ in added), sum(u for _, u in added)
    metrics = {
        "oIoU": 100 * (sum_i / sum_u),
        "mIoU": 100 * float(np.mean(ious)),
        "cum_I": sum_i,
        "cum_U": sum_u,
        "count": len(ious),
    }
    for x in LIMITS:
        hits = sum(iou > float(f32(x)) for iou in ious)
        metrics[f"Pr@{x * 100:.0f}"] = 100 * float(f32(hits) / f32(len(ious)))
    return added, metrics


def lisa(rows: list[Row]) -> tuple[list, dict]:
    """LISA's figures, in percent; where nothing is and nothing is said, the answer is right."""
    added = [row.counted() for row in rows]
    sum_i, sum_u = sum(i for i, _ in added), sum(u for _, u in added)
    ious = [i / (u + 1e-5) if u else 1.0 for i, u in added]
    metrics = {
        "gIoU": 100 * sum(ious) / (len(ious) + 1e-5),
        "cIoU": 100 * sum_i / (sum_u + 1e-10),
        "cum_I": sum_i,
        "cum_U": sum_u,
        "count": len(ious),
    }
    return added, metrics


def rela(rows: list[Row]) -> tuple[list, dict]:
    """ReLA's figures."""
    added, ious, of_targeted = [], [], []
    counter = dict.fromkeys(("TP", "FN", "FP", "TN"), 0)
    for row in rows:
        i, u = row.counted()
        iou = i / u if u else 0.0
        if not row.targeted and row.refused:
            counter["TP"] += 1
            i, u, iou = 0, 0, 1.0
        elif not row.targeted:
            counter["FN"] += 1
            i, iou = 0, 0.0
        elif row.refused:
            counter["FP"] += 1
            i, iou = 0, 0.0
        else:
            counter["TN"] += 1
        added.append((i, u))
        ious.append(iou)
        if row.targeted:
            of_targeted.append(iou)
    untargeted = counter["TP"] + counter["FN"]
    metrics = {
        "gIoU": 100 * (sum(ious) / len(ious)),
        "cIoU": sum(i for i, _ in added) * 100 / sum(u for _, u in added),
        "T_acc": counter["TN"] / len(of_targeted) if untargeted else 0.0,
        "N_acc": counter["TP"] / untargeted if untargeted else 0.0,
    }
    for x in LIMITS[2:]:
        metrics[f"Pr@{x}"] = sum(iou >= x for iou in of_targeted) * 100 / len(of_targeted)
    return added, metrics | {"count": len(ious)}


def emptied(row: Row) -> tuple[int, int]:
    """I and U of the released code: a refused answer has no pixel."""
    return (0, int(row.truth.sum())) if row.refused else row.counted()


def released(rows: list[Row]) -> tuple[list, dict]:
    """The released code's figures, all of them in float32."""
    added, sum_iou, sum_gain = [], f32(0), f32(0)
    hits = dict.fromkeys(LIMITS, 0)
    for row in rows:
        i, u = emptied(row)
        iou = f32(i) / (f32(u) + f32(1e-6))
        sum_iou = sum_iou + iou
        sum_gain = sum_gain + (f32(1) if u == 0 else f32(i) / (f32(u) + f32(1e-5)))
        for x in LIMITS:
            hits[x] += bool(iou >= f32(x))
        added.append((i, u))
    percent = f32(100)
    n = f32(len(rows))
    sum_i, sum_u = sum(i for i, _ in added), sum(u for _, u in added)
    metrics = {f"precision@{x}": float(f32(hits[x]) * percent / n) for x in LIMITS}
    return added, metrics | {
        "cIoU": float(f32(sum_i) * percent / f32(sum_u)),
        "mIoU": float(sum_iou * percent / n),
        "gIoU": float(sum_gain * percent / n),
        "gres_acc": 0.0,
        "count": len(rows),
        "cum_I": sum_i,
        "cum_U": sum_u,
    }


def released_on_ref_zom(rows: list[Row]) -> tuple[list, dict]:
    """The released code's branch for Ref-ZOM."""
    added, sum_i, sum_u, sum_iou, none, right = [], 0, 0, f32(0), 0, 0
    for row in rows:
        i, u = emptied(row)
        added.append((i, u))
        if not row.targeted:
            none += 1
            right += u == 0  # there is no truth: the union is the answer
            continue
        sum_iou = sum_iou + f32(i) / (f32(u) + f32(1e-6))
        sum_i, sum_u = sum_i + i, sum_u + u
    n = len(rows) - none
    metrics = {f"precision@{x}": 0.0 for x in LIMITS}
    return added, metrics | {
        "cIoU": float(f32(sum_i) * f32(100) / f32(sum_u)),
        "mIoU": float(sum_iou * f32(100) / f32(n)),
        "gIoU": 0.0,
        "gres_acc": right * 100 / (none + 1e-4),
        "count": n,
        "zero_count": none,
        "cum_I": sum_i,
        "cum_U": sum_u,
    }
