"""The lines that a published evaluator prints, so that logs can be compared as they are."""

from __future__ import annotations

from ris.evaluation.protocols.counting import LIMITS, Metrics


def lavt_lines(metrics: Metrics) -> list[str]:
    """LAVT's."""
    return [
        "Final results:",
        f"Mean IoU is {metrics['mIoU']:.2f}",
        *_precisions(metrics),
        f"overall IoU = {metrics['oIoU']:.2f}",
    ]


def dmmi_lines(metrics: Metrics) -> list[str]:
    """DMMI's; with a last line on Ref-ZOM."""
    lines = [
        "Final results:",
        *_precisions(metrics),
        f"overall IoU = {metrics['oIoU']:.2f}",
        f"mean IoU = {metrics['mIoU']:.2f}",
    ]
    if "acc" in metrics:
        lines.append(f"Mean accuracy for one-to-zero sample is {metrics['acc']:.2f}")
    return lines


def cgformer_lines(metrics: Metrics) -> list[str]:
    """CGFormer's log."""
    shares = [f"Pr@{limit * 100:.0f}: {metrics[f'Pr@{limit * 100:.0f}']:.2f}." for limit in LIMITS]
    return [
        "=> Metric Calculation <=",
        f"oIoU={metrics['oIoU']:.2f}",
        f"mIoU={metrics['mIoU']:.2f}",
        *shares,
    ]


def plain_lines(metrics: Metrics) -> list[str]:
    """Of evaluators that print a table of unrounded numbers: a figure a line."""
    return [f"{name}: {value:.4f}" for name, value in metrics.items()]


def _precisions(metrics: Metrics) -> list[str]:
    return [f"precision@{limit} = {metrics[f'Pr@{limit}']:.2f}" for limit in LIMITS]
