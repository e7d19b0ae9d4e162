"""CGFormer: two tokens that group the places of an image and make the kernel of the mask.

Of Tang, Zheng, Shi and Yang, "Contrastive Grouping with Transformer for Referring Image
Segmentation" (CVPR 2023).
"""
