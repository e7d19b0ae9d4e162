"""INT8: what each layer may span, which layers may be quantised, and the bundle that comes of
it.
"""
