"""Mutated files for every reader of the Python rooms: an answer or one sentence, whatever comes.

`make fuzz-inputs` runs it, `command.py` says how. A kind of input is a module's `make`, which
mutates a good file, and its `door`, the public function that reads it.
"""
