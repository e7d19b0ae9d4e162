"""The options of how a bundle runs, said to another command."""

from __future__ import annotations

import click
import pytest
from click.testing import CliRunner

from ris.runtime.commands.running import Running, as_arguments, running_options


@pytest.mark.parametrize(
    "running",
    [
        Running("auto", "auto", None, None),
        Running("openvino", "cpu", 3, "bf16", overlap=True, low_memory=True, throughput=True),
        Running("auto", "auto", 1, {"fusion": "bf16"}, overlap=False),
        Running("auto", "auto", 1, {"*": "fp32", "fusion": "bf16", "text_encoder": "fp16"}),
    ],
)
def test_another_command_runs_the_bundle_in_the_same_way(running):
    taken = []

    @click.command()
    @running_options
    def other(running):
        taken.append(running)

    done = CliRunner().invoke(other, as_arguments(running))
    assert done.exit_code == 0, done.output
    assert taken == [running]
