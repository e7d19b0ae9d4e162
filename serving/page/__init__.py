"""`ris-demo-ui`: the page of `ris-serve http` by itself, for one person at one machine."""
