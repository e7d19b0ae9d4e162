"""What a model scores: protocols and metrics of the field, comparisons, and `ris-eval`."""
