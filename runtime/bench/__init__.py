"""Times ways of running a bundle, beside the machine's own speed (`ris-bench`).

Each way has a process of its own, and they take turns.

- `plan`: what is measured, how often, and on what input.
- `run`: starts the processes and gives them their turns.
- `process`: such a process from outside; `worker`: what runs in it; `rates`: matrix products.
- `report`: the result as data; `summary` makes it from the answers of the processes.
- `show`: a report as Markdown and as a plot; `compare`: two reports side by side; `text`: figures
  for people.
"""
