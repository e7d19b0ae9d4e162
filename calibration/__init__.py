"""What the activations are: calibration data, ranges, FP16 islands chosen by measurement, INT8. Nothing yet."""
