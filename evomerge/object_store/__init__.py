"""Artifacts on an object store: URLs, objects, and the folder of this machine in which they are read and written.

- Holds: `s3://BUCKET/PREFIX`, whole objects put, fetched, listed and deleted through fsspec, Optuna's artifact store.
- Does not hold: studies (`storage/`), and the meaning of the files.
"""
