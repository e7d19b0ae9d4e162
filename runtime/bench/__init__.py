"""Times ways of running a bundle, in turn, each in a process of its own, beside the machine's own
speed (`ris-bench`).

`run` starts the processes and gives them their turns, `worker` is what runs in each of them,
`rates` measures matrix products, `report` is what comes out, `show` and `compare` present it.
"""
