"""What tests of `ris-calibrate` share."""

from __future__ import annotations

import pytest

from ris.calibration.int8.chain import Score
from ris.calibration.int8.options import Int8Options
from ris.calibration.int8.report import Int8Report


@pytest.fixture
def begun(monkeypatch):
    """`ris-calibrate int8` only notes its samples, a list a run, and gives a report."""
    seen = []

    def quantise(bundle, samples, out, options, *, overwrite, execution):
        seen.append([samples[i] for i in range(len(samples))])
        score = Score(1.0, None, None)
        return Int8Report(
            options=Int8Options(calibrator="minmax"),
            samples=samples.expressions,
            calibrator="minmax",
            calibrators={"minmax": score},
            graphs={},
            layers=(),
            quantised={},
            kept={},
            score=score,
            mask_iou=1.0,
        )

    monkeypatch.setattr("ris.calibration.int8.quantise.quantise_bundle", quantise)
    return seen
