"""ReLA: a Swin backbone that reads the words, and regions that attend to the image and the words.

Of Liu, Ding and Jiang, "GRES: Generalized Referring Expression Segmentation" (CVPR 2023).
"""
