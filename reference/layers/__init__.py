"""What the families of models share: layers, and encoders from other libraries."""
