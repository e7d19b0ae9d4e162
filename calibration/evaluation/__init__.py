"""What a model scores: samples from scenes and data sets, the field's metrics, and `ris-eval` over them."""
