"""Reference model -> five ONNX graphs -> precision -> bundle: `ris-export`, or
`bundle_writer.export_bundle`.
"""
