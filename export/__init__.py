"""Reference model -> a graph for each stage -> precision -> bundle, for the families of the table.

The command is `ris-export`, the function `bundle_writer.export_bundle`.
"""
