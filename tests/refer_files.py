"""Small data sets in the forms of RefCOCO (pickle) and gRefCOCO (JSON), of drawn scenes."""

from __future__ import annotations

import json
import pickle

import numpy as np
from PIL import Image

from ris.data.scenes import make_samples, make_scene
from ris.runtime.masks import encode_rle

CATEGORIES = [{"id": 1, "name": "person"}, {"id": 3, "name": "car"}, {"id": 18, "name": "dog"}]


def write_refer(root, name="refcoco", images=6, size=96, splits=("train", "val")):
    """Writes data set `name` below `root`; images go to the splits in turn.

    Objects are boxes around the scenes' objects, as polygons; the second object of an image is
    COCO's uncompressed run-length code. RefCOCO has one object a reference, gRefCOCO also two and
    none. Returns the references that were written.
    """
    generalised = name == "grefcoco"
    folder, pictures = folders(root, name)
    shapes, annotations, refs, sentence = [], [], [], 0
    for number in range(1, images + 1):
        scene = make_scene(number, "train", size)
        file = f"COCO_train2014_{number:012d}.jpg"
        Image.fromarray(scene.image).resize((size + 24, size)).save(pictures / file)
        shapes.append({"id": number, "file_name": file, "height": size, "width": size + 24})
        objects = [box_annotation(number, place, size) for place in range(2)]
        annotations += objects

        own = [annotation["id"] for annotation in objects]
        targets = [[own[0]], [own[1]], own, [-1]] if generalised else [own[0], own[1]]
        words = [sample.expression for sample in make_samples(scene, number, 4)]
        for place, (target, text) in enumerate(zip(targets, words, strict=False)):
            sentences = []
            for version in (text, f"the {text}"):
                tokens = version.split()
                sentences.append(
                    {
                        "raw": f"{version.capitalize()}.",
                        "sent": version,
                        "tokens": tokens,
                        "sent_id": sentence,
                    }
                )
                sentence += 1
            refs.append(
                {
                    "ref_id": len(refs),
                    "ann_id": target,
                    "image_id": number,
                    "split": splits[(number - 1) % len(splits)],
                    "file_name": file,
                    "category_id": [1] if generalised else CATEGORIES[place]["id"],
                    "sentences": sentences,
                    "sent_ids": [s["sent_id"] for s in sentences],
                }
            )
    write_files(folder, name, refs, shapes, annotations)
    return refs


def box_annotation(image, place, size):
    """The first (0) or second (1) object of an image: a box, as a polygon or a run-length code."""
    x, y = 8 + 40 * place, 10 + image
    polygon = [x, y, x + 20, y, x + 20, y + 30, x, y + 30]
    return {
        "id": image * 10 + place,
        "image_id": image,
        "category_id": CATEGORIES[place]["id"],
        "segmentation": uncompressed(size, size + 24, (x, y, 20, 30)) if place else [polygon],
        "area": 600,
        "bbox": [x, y, 20, 30],
        "iscrowd": 0,
    }


def write_scenes(root, name, images):
    """Writes `AnnotatedImage`s as data set `name` below `root`, pixels and masks unchanged.

    Pictures are PNG files, masks run-length codes. RefCOCO has no untargeted expressions and
    Ref-ZOM marks them by their source; a reference has one annotation.
    """
    folder, pictures = folders(root, name)
    shapes, annotations, refs = [], [], []
    for number, image in enumerate(images, 1):
        file = f"COCO_train2014_{number:012d}.png"
        Image.fromarray(image.rgb).save(pictures / file)
        height, width = image.rgb.shape[:2]
        shapes.append({"id": number, "file_name": file, "height": height, "width": width})
        for truth in image.truths:
            given = -1
            if truth.targeted:
                given = len(annotations) + 1
                outline = dict(encode_rle(truth.mask))
                annotations.append(
                    {"id": given, "image_id": number, "category_id": 1, "segmentation": outline}
                )
            elif not name.startswith(("gref", "ref-zom")):
                continue
            source = {"source": "one" if truth.targeted else "zero"} if name == "ref-zom" else {}
            sentence = {"raw": truth.expression, "sent_id": len(refs)}
            if name != "ref-zom":
                sentence["sent"] = truth.expression
            refs.append(
                {
                    "ref_id": len(refs),
                    "image_id": number,
                    "category_id": 1,
                    "split": "val",
                    "sent_ids": [len(refs)],
                    "ann_id": [given] if name.startswith("gref") else given,
                    **source,
                    "sentences": [sentence],
                }
            )
    write_files(folder, name, refs, shapes, annotations)


def folders(root, name):
    """The data set's folder and that of the pictures, made where they are not there."""
    folder, pictures = root / name, root / "images" / "train2014"
    folder.mkdir(parents=True)
    pictures.mkdir(parents=True, exist_ok=True)
    return folder, pictures


def write_files(folder, name, refs, shapes, annotations):
    """The list of references and instances.json, as the data set's authors name them."""
    if name == "grefcoco":
        (folder / "grefs(unc).json").write_text(json.dumps(refs))
    else:
        by = {"refcocog": "umd", "ref-zom": "final"}.get(name, "unc")
        (folder / f"refs({by}).p").write_bytes(pickle.dumps(refs, protocol=2))
    instances = {"images": shapes, "annotations": annotations, "categories": CATEGORIES}
    (folder / "instances.json").write_text(json.dumps(instances))


def uncompressed(height, width, box):
    """A box as COCO's uncompressed run-length code: columns first, runs of 0 and 1 in turn."""
    mask = np.zeros((height, width), bool)
    x, y, w, h = box
    mask[y : y + h, x : x + w] = True
    flat = mask.flatten(order="F")
    edges = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff(np.concatenate([[0], edges, [flat.size]]))
    return {"size": [height, width], "counts": counts.tolist()}
