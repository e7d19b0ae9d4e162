"""The options of weight files: what a person may choose of a family reaches the command."""

from __future__ import annotations

import importlib
import tomllib

import click
import pytest
from click.testing import CliRunner

from conftest import REPO
from ris.engines.errors import CheckpointError
from ris.reference.family import Choice
from ris.runtime.commands.weight_files import choice_options, require_no_choice
from ris.runtime.reference import GROUP

COLOUR = Choice("ball_colour", ("red", "blue"), "what the ball looks like")


@pytest.fixture
def asked():
    @click.command
    @choice_options([COLOUR], "--pytorch")
    def command(chosen):
        click.echo(chosen)

    return lambda *arguments: CliRunner().invoke(command, arguments).output


def test_an_option_for_each_choice(asked):
    assert asked() == "{}\n"
    assert asked("--ball-colour", "blue") == "{'ball_colour': 'blue'}\n"
    assert "'green' is not one of 'red', 'blue'" in asked("--ball-colour", "green")
    said = " ".join(asked("--help").split())
    assert "With --pytorch: what the ball looks like. Default: red." in said


def test_a_choice_needs_the_flag_that_loads_weights():
    require_no_choice([COLOUR], {}, "--pytorch")
    with pytest.raises(CheckpointError) as caught:
        require_no_choice([COLOUR], {"ball_colour": "red"}, "--pytorch")
    assert str(caught.value) == "--ball-colour needs --pytorch; a bundle has what its export chose"


def test_the_installation_says_what_may_be_chosen():
    """What runs without PyTorch finds the table of families by an entry point."""
    project = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
    module = importlib.import_module(project["entry-points"][GROUP]["families"])
    assert "lang_weight" in [choice.field for choice in module.all_choices()]
