"""Reference model -> five ONNX graphs -> precision -> bundle.

The command is `ris-export`, the function `bundle_writer.export_bundle`.
"""
