"""EVF-SAM: a small square of the picture and the words in one transformer, and SAM behind it.

Of Zhang, Cheng, Hu, Liu, Wang and others, "EVF-SAM: Early Vision-Language Fusion for Text-Prompted
Segment Anything Model" (arXiv 2406.20076), on SAM and on SAM 2.
"""
