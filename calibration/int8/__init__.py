"""INT8: the range of each activation, the layers that may be quantised, and the bundle."""
