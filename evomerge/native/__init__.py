"""Loops in C++ for what torch and numpy have no operation for, compiled once per machine.

- Holds: the sources of all loops, their compilation and the threads that share them; of those that need nothing but
  tensors also the Python side: exact magnitudes of ranks, norms of masked task vectors, weighted sums and their slopes.
- Does not hold: a definition. Every loop has the result of one in torch or numpy, which serves where no loop does.
- Start reading at: `compiled_loops.py`, then `ranked_magnitudes.py` beside `ranked_magnitudes.cpp`.
"""
