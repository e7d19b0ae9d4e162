"""What a model scores: the field's protocols and metrics, comparisons, and `ris-eval` over them."""
