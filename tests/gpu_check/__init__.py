"""Everything that only a GPU can show, in one script: `make gpu-check`.

    python -m tests.gpu_check --out build/gpu-check

It needs under ten minutes. Every part has a process and a time limit of its own, and what was found
is written after each of them, so a part that fails, crashes or hangs costs nothing but itself.

- `__main__`: which parts there are; starts them and writes the report.
- `worker`: what runs in a part's process, in sections that are kept one by one.
- `report`: the findings as JSON and as Markdown.
- `double`: stands in for the driver and TensorRT, for a dry run on a machine without a GPU.
"""
