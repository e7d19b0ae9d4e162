"""What models are trained, calibrated and measured on: drawn scenes and published data sets.

`scenes` draws pictures with referring expressions and exact masks. `datasets` reads RefCOCO's,
gRefCOCO's and Ref-ZOM's files and your own JSONL files. `samples` makes images with expressions and
true masks from either.
"""
