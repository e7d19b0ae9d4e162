"""A Triton model repository from a bundle, and what runs inside the server.

`repository` and `config` write it, `server` starts the server, `backend` and `bls` run inside, and
`load_test` compares it with the plain runtime.
"""
