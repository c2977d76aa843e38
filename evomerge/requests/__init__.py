"""Requests to a search that runs elsewhere: pause, stop, cancel, points to try."""
