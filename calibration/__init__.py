"""What the numbers inside a model do, and what FP16 and INT8 make of them."""
