"""ris-runtime: image + "left man" -> mask, without PyTorch. `ris.runtime.load` opens a model.

The rooms stand beside this folder in the repository and are installed as `ris.runtime`,
`ris.engines` and so on.
"""

__version__ = "0.2.0.dev0"

INSTALLS_FROM = "."
"""What pip installs today: a checkout (`.`) or a wheel file. On an index it will be a name."""


def pip_install(*extras: str) -> str:
    """The command that installs these extras, for messages: pip install ".[cpu,export]"."""
    return f'pip install "{INSTALLS_FROM}[{",".join(extras)}]"'
