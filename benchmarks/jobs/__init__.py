"""The jobs, a function for each: what a user of each library writes.

A job gets the name of the library, the URL, and the size, and returns the turn: a function that does so many units of
work and returns the figure. `contenders.py` runs it in an empty folder, for its files. Imports nothing else of
`benchmarks`.
"""
