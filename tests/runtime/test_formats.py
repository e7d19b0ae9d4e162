"""Labels of a run: COCO that pycocotools loads, YOLO, labelme, polygons; nothing is replaced."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from pycocotools import mask as coco_masks
from pycocotools.coco import COCO

from ris.engines.errors import EngineError, RisError
from ris.runtime import Model, Segmentation, results
from ris.runtime.commands.infer import main
from ris.runtime.results import FORMATS, ResultWriter

SIZE = (40, 60)


def mask_of(kind):
    y, x = np.indices(SIZE)
    distance = np.hypot(y - 20, x - 30)
    return {
        "ring": (distance < 18) & (distance > 7),
        "two": (distance < 18) & (abs(x - 30) > 5),
        "full": np.ones(SIZE, bool),
        "empty": np.zeros(SIZE, bool),
    }[kind]


def answer(expression, kind, category=None):
    return Segmentation(
        expression=expression,
        mask=mask_of(kind),
        logits=np.zeros((4, 4), np.float32),
        score=0.75,
        no_target=None,
        is_no_target=kind == "empty",
        category=category,
        timings={},
    )


def write(formats, answers, tolerance=0.0, out="out"):
    """Writes [(image, results)]; returns the names of all files."""
    writer = ResultWriter(Path(out), formats, [image for image, _ in answers], tolerance)
    written = [path for image, results in answers for path in writer.write(image, None, results, 0)]
    written += writer.finish()
    return [path.relative_to(out).as_posix() for path in written]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


ANSWERS = [
    (Path("photos/a.jpg"), [answer("the ring", "ring"), answer("nobody", "empty")]),
    (Path("photos/deep/b.png"), [answer("two halves", "two"), answer("the ring", "full")]),
    (Path("photos/deep/c.png"), [answer("nobody", "empty")]),
    (Path("photos/../photos/a.jpg"), [answer("everything 🙂", "full")]),
]


def rows_of(path):
    """A YOLO file, as ultralytics documents it: class, x, y and so on, as shares."""
    rows = [line.split() for line in Path(path).read_text().splitlines()]
    assert all(len(row) > 6 and len(row) % 2 for row in rows)
    found = [(int(row[0]), np.array(row[1:], np.float32).reshape(-1, 2)) for row in rows]
    assert all(ring.min() >= 0 and ring.max() <= 1 for _, ring in found)
    return found


def filled(rings):
    pixels = [ring.ravel().tolist() for ring in rings]
    return coco_masks.decode(coco_masks.merge(coco_masks.frPyObjects(pixels, *SIZE))).astype(bool)


def test_pycocotools_loads_the_masks_areas_and_boxes(capsys):
    assert write(["coco"], ANSWERS) == ["coco.json"]
    found = COCO("out/coco.json")
    assert [image["file_name"] for image in found.loadImgs(found.getImgIds())] == [
        "a.jpg",
        "deep/b.png",
        "deep/c.png",
    ]
    names = [one["name"] for one in found.loadCats(found.getCatIds())]
    assert names == ["the ring", "nobody", "two halves", "everything 🙂"]
    annotations = found.loadAnns(found.getAnnIds())
    assert [
        (a["image_id"], names[a["category_id"] - 1], a["expression"], a["score"])
        for a in annotations
    ] == [
        (1, "the ring", "the ring", 0.75),
        (2, "two halves", "two halves", 0.75),
        (2, "the ring", "the ring", 0.75),
        (1, "everything 🙂", "everything 🙂", 0.75),
    ]
    for annotation, kind in zip(annotations, ["ring", "two", "full", "full"], strict=True):
        np.testing.assert_array_equal(found.annToMask(annotation), mask_of(kind))
        code = found.annToRLE(annotation)
        assert annotation["area"] == coco_masks.area(code)
        assert annotation["bbox"] == coco_masks.toBbox(code).tolist()
        assert len(annotation["segmentation"]) == (2 if kind == "two" else 1)


def test_yolo_has_a_file_for_each_image_and_the_names():
    assert write(["yolo"], ANSWERS) == ["a.txt", "deep/b.txt", "deep/c.txt", "a.txt", "data.yaml"]
    a = rows_of("out/a.txt")
    assert [number for number, _ in a] == [0, 3]
    pixels = [(ring * (SIZE[1], SIZE[0])).round().astype(int) for _, ring in a]
    np.testing.assert_array_equal(filled(pixels[:1]), mask_of("ring"))
    b = rows_of("out/deep/b.txt")
    assert [number for number, _ in b] == [2, 2, 0], "a row for each part"
    assert Path("out/deep/c.txt").read_text() == ""
    assert Path("out/data.yaml").read_text().splitlines() == [
        f'path: "{Path("photos").absolute()}"',
        "train: .",
        "val: .",
        "names:",
        '  0: "the ring"',
        '  1: "nobody"',
        '  2: "two halves"',
        '  3: "everything \\U0001f642"',
    ]


def test_ultralytics_reads_the_labels():
    pytest.importorskip("ultralytics", reason="pip install ultralytics")
    from ultralytics.data.dataset import YOLODataset
    from ultralytics.data.utils import check_det_dataset, polygon2mask

    answers = [(Path("set/images", *image.parts[1:]), found) for image, found in ANSWERS[:3]]
    for image, _ in answers:
        image.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", SIZE[::-1]).save(image)
    write(["yolo"], answers, out="set/labels")

    data = check_det_dataset("set/labels/data.yaml", autodownload=False)
    assert data["names"] == {0: "the ring", 1: "nobody", 2: "two halves"}
    labels = YOLODataset(img_path=data["train"], data=data, task="segment").get_labels()
    found = {Path(one["im_file"]).name: one for one in labels}
    assert sorted(found) == ["a.jpg", "b.png", "c.png"]
    assert [len(found[name]["segments"]) for name in sorted(found)] == [1, 3, 0]
    [ring] = found["a.jpg"]["segments"]
    drawn = polygon2mask(SIZE, [(ring * SIZE[::-1]).ravel()]).astype(bool)
    both = (drawn & mask_of("ring")).sum() / (drawn | mask_of("ring")).sum()
    assert both > 0.85  # OpenCV paints the pixels on the line as well


def test_labelme_has_the_image_its_size_and_polygons():
    assert write(["labelme"], ANSWERS[1:2]) == ["b.json"]
    found = json.loads(Path("out/b.json").read_text())
    assert {name: found[name] for name in found if name != "shapes"} == {
        "version": "5.5.0",
        "flags": {},
        "imagePath": "../photos/deep/b.png",
        "imageData": None,
        "imageHeight": 40,
        "imageWidth": 60,
    }
    labels = [(shape["label"], shape["group_id"]) for shape in found["shapes"]]
    assert labels == [("two halves", 0), ("two halves", 0), ("the ring", 1)]
    rings = [np.array(shape["points"]) for shape in found["shapes"]]
    np.testing.assert_array_equal(filled(rings[:2]), mask_of("two"))
    assert {shape["shape_type"] for shape in found["shapes"]} == {"polygon"}


def test_answers_about_an_image_that_comes_again_are_in_its_file():
    write(["labelme", "yolo"], ANSWERS)
    shapes = json.loads(Path("out/a.json").read_text())["shapes"]
    labels = [(shape["label"], shape["group_id"]) for shape in shapes]
    assert labels == [("the ring", 0), ("everything 🙂", 2)]


def test_polygons_are_a_geojson_feature():
    assert write(["polygons"], ANSWERS[:1]) == [
        "a.the-ring.polygons.json",
        "a.nobody.polygons.json",
    ]
    ring, nobody = (
        json.loads(Path(f"out/a.{name}.polygons.json").read_text())
        for name in ("the-ring", "nobody")
    )
    [part] = ring["geometry"]["coordinates"]
    assert len(part) == 2
    assert all(one[0] == one[-1] for one in part)
    assert (ring["type"], ring["geometry"]["type"]) == ("Feature", "MultiPolygon")
    assert ring["properties"]["box"] == [13, 3, 35, 35]
    assert nobody["geometry"]["coordinates"] == []
    assert nobody["properties"]["box"] is None


def test_simpler_polygons_have_fewer_points():
    write(["labelme"], ANSWERS[:1])
    exact = json.loads(Path("out/a.json").read_text())["shapes"][0]["points"]
    Path("out/a.json").unlink()
    write(["labelme"], ANSWERS[:1], tolerance=1.0)
    simple = json.loads(Path("out/a.json").read_text())["shapes"][0]["points"]
    assert len(simple) < len(exact) / 2


def test_the_class_is_the_category_where_the_model_asks_by_category():
    write(["coco", "labelme"], [(Path("a.jpg"), [answer("left man", "ring", "person")])])
    [category] = json.loads(Path("out/coco.json").read_text())["categories"]
    assert category == {"id": 1, "name": "person"}
    [shape] = json.loads(Path("out/a.json").read_text())["shapes"]
    assert (shape["label"], shape["description"]) == ("person", "left man")


@pytest.mark.parametrize(
    ("name", "formats"),
    [("a.json", "labelme"), ("a.txt", "yolo"), ("data.yaml", "yolo"), ("coco.json", "coco")],
)
def test_labels_that_are_there_are_not_replaced(name, formats):
    Path("out").mkdir()
    Path("out", name).write_text("by hand")
    with pytest.raises(RisError, match=f"out/{name} is there already, and labels are not"):
        write([formats], ANSWERS)
    assert [path.name for path in Path("out").iterdir()] == [name]
    assert Path("out", name).read_text() == "by hand"


@pytest.mark.parametrize("formats", ["yolo", "labelme"])
def test_two_images_with_one_name_are_said_before_anything_is_done(formats):
    twins = [(Path("a.jpg"), []), (Path("a.png"), [])]
    with pytest.raises(RisError, match=r"a\.jpg and a\.png would have the same labels, a\.\w+;"):
        write([formats], twins)
    assert not Path("out").exists()


def test_a_file_that_two_formats_would_write_is_said_before_anything_is_done():
    answers = [(Path("coco.jpg"), [])]
    with pytest.raises(RisError, match=r"two formats would write out/coco\.json; rename"):
        write(["coco", "labelme"], answers)
    assert not Path("out").exists()


def test_answers_do_not_replace_each_other_nor_labels(monkeypatch):
    monkeypatch.setattr(results, "describe", lambda *given: {})
    labelled = [
        (Path("a.the-ring.jpg"), [answer("two", "full")]),
        (Path("a.jpg"), [answer("the ring", "ring")]),
    ]
    assert set(write(["json", "labelme"], labelled)) == {
        *("a.the-ring.json", "a.json"),  # the images' labels
        *("a.the-ring.two.json", "a.the-ring-2.json"),
    }
    answers = [
        (Path("b.jpg"), [answer("x", "ring")]),
        (Path("b.x.jpg"), [answer("rle", "ring")]),
    ]
    assert write(["json", "rle"], answers) == [
        *("b.x.json", "b.x.rle.json"),
        *("b.x.rle-2.json", "b.x.rle-2.rle.json"),
    ]


def test_names_that_cannot_be_encoded_or_are_too_long():
    images = [Path("caf\udce9.png"), Path("x" * 251 + ".jpg")]
    answers = [(image, [answer("cut \ud83d", "ring")]) for image in images]
    write(["coco", "yolo", "labelme", "polygons"], answers)
    found = json.loads(Path("out/coco.json").read_text())
    assert found["images"][0]["file_name"] == "caf\ufffd.png"
    assert found["categories"] == [{"id": 1, "name": "cut \ufffd"}]
    assert Path("out", "x" * 250 + ".json").exists()


def test_every_format_of_several_images_and_expressions_at_once(tiny_bundle, picture):
    """The masks of the command's labels are those of its arrays."""
    Path("photos").mkdir()
    for name, part in (("a", picture), ("b", picture[:, ::-1][:300])):
        Image.fromarray(part).save(f"photos/{name}.png")
    formats = [option for name in FORMATS for option in ("--format", name)]
    asked = ["photos", "-e", "left man", "-e", "the dog", "--bundle", str(tiny_bundle)]
    done = CliRunner().invoke(main, [*asked, *formats, "--out", "out"])
    assert done.exit_code == 0, done.output
    assert all(f"wrote out/{name}" in done.output for name in ("a.txt", "data.yaml", "coco.json"))
    found = COCO("out/coco.json")
    names = {one["id"]: one["name"].replace(" ", "-") for one in found.cats.values()}
    masks = {}
    for annotation in found.anns.values():
        image = Path(found.imgs[annotation["image_id"]]["file_name"]).stem
        masks[f"{image}.{names[annotation['category_id']]}"] = found.annToMask(annotation)
    arrays = {path.stem: np.load(path) for path in Path("out").glob("*.npy")}
    assert len(arrays) == 4
    assert masks.keys() == {name for name, mask in arrays.items() if mask.any()}
    for name, mask in masks.items():
        np.testing.assert_array_equal(mask, arrays[name])

    again = CliRunner().invoke(main, [*asked, "--format", "coco", "--out", "out"])
    assert again.exit_code == 2
    assert "Error: out/coco.json is there already" in again.output


def test_labels_have_what_was_answered_before_the_engine_failed(tiny_bundle, picture, monkeypatch):
    for name in "ab":
        Image.fromarray(picture).save(f"{name}.png")
    honest, asked = Model.encode_image, []

    def encode(*given, **options):
        asked.append(given)
        if len(asked) == 2:
            raise EngineError("the device is lost")
        return honest(*given, **options)

    monkeypatch.setattr(Model, "encode_image", encode)
    options = ["a.png", "b.png", "man", "--bundle", str(tiny_bundle), "--format", "coco"]
    done = CliRunner().invoke(main, [*options, "--format", "yolo", "--out", "out"])
    assert done.exit_code == 2
    assert "Error: the device is lost" in done.output
    found = json.loads(Path("out/coco.json").read_text())
    assert [image["file_name"] for image in found["images"]] == ["a.png"]
    assert Path("out/data.yaml").exists()


def test_where_nothing_could_be_answered_nothing_is_written(tiny_bundle):
    Path("broken.png").write_text("no image")
    asked = ["broken.png", "man", "--bundle", str(tiny_bundle), "--format", "coco", "--out", "out"]
    assert CliRunner().invoke(main, asked).exit_code == 2
    assert not Path("out").exists()


def test_no_target_is_an_image_without_annotations(tiny_bundle, picture):
    Image.fromarray(picture).save("a.png")
    asked = ["a.png", "man", "--bundle", str(tiny_bundle), "--no-target-threshold", "0"]
    done = CliRunner().invoke(main, [*asked, "--format", "coco", "--format", "yolo"])
    assert done.exit_code == 0, done.output
    found = json.loads(Path("ris-output/coco.json").read_text())
    assert [len(found[name]) for name in ("images", "annotations", "categories")] == [1, 0, 1]
    assert Path("ris-output/a.txt").read_text() == ""


def check_detections(make):
    """The documented fields of supervision.Detections."""
    found = answer("the ring", "ring").to_supervision(class_id=7)
    assert isinstance(found, make)
    assert found.xyxy.tolist() == [[13, 3, 48, 38]]
    np.testing.assert_array_equal(found.mask, mask_of("ring")[None])
    assert found.mask.dtype == np.bool_
    assert found.confidence.tolist() == [0.75]
    assert found.class_id.tolist() == [7]
    assert found.data["class_name"].tolist() == ["the ring"]
    empty = answer("nobody", "empty", "person").to_supervision()
    assert empty.xyxy.shape == (0, 4)
    assert empty.mask.shape == (0, *SIZE)
    assert len(empty.confidence) == len(empty.class_id) == len(empty.data["class_name"]) == 0
    return found, empty


def test_detections_have_the_fields_that_supervision_documents(monkeypatch):
    double = types.ModuleType("supervision")
    double.Detections = types.SimpleNamespace
    monkeypatch.setitem(sys.modules, "supervision", double)
    check_detections(types.SimpleNamespace)


def test_detections_are_supervisions():
    supervision = pytest.importorskip(
        "supervision", reason="not installed: pip install supervision"
    )
    found, empty = check_detections(supervision.Detections)
    assert found.area.tolist() == [mask_of("ring").sum()]
    assert len(empty) == 0
    both = supervision.Detections.merge([found, answer("all", "full").to_supervision(), empty])
    assert both["class_name"].tolist() == ["the ring", "all"]
    picture = np.zeros((*SIZE, 3), np.uint8)
    assert supervision.MaskAnnotator().annotate(picture, both).any()


def test_detections_without_supervision_say_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(RisError, match="pip install supervision"):
        answer("x", "full").to_supervision()
