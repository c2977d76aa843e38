"""A first search.yaml, written from a few answers and from what the sources are; every line of it is explained."""
