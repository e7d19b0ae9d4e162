"""A Triton model repository from a bundle (`repository`), and what runs inside the server
(`backend`, `bls`).
"""
