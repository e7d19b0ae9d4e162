"""`ris-batch`: a folder, table or web-dataset through a pool of Ray actors, into Parquet with COCO
run lengths.
"""
