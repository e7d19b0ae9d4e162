"""Reference model -> five ONNX graphs -> precision -> bundle. The command is `ris-export`; the call is `export_bundle`."""
