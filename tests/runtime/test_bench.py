"""`ris-bench` reports what it times; no figure is judged here."""

from __future__ import annotations

import json

from click.testing import CliRunner

from ris.runtime.commands.bench import main


def test_the_report(tiny_bundle):
    done = CliRunner().invoke(main, [str(tiny_bundle), "--runs", "2", "--pytorch", "--json"])
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert report["runs"] == 2
    first = report["first_mask"]
    assert 0 < first["smallest"] <= first["median"] <= first["largest"]
    assert 0 < report["host"]["median"] < first["median"]
    assert report["next_expression"]["median"] > 0
    assert set(report["stages"]) >= {"image.sam_image_encoder", "fusion", "mask_decoder", "dense_prompt"}
    assert list(report["alternatives"]) == ["PyTorch eager FP32"]


def test_the_table(tiny_category_bundle):
    done = CliRunner().invoke(main, [str(tiny_category_bundle), "--runs", "1"])
    assert done.exit_code == 0, done.output
    assert "next expression" in done.output
