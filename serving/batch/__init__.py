"""`ris-batch`: many images through a pool of Ray actors, into Parquet with COCO run lengths.

The input is a folder, a table, or web-dataset shards.
"""
