"""Logs of a run, kept with its study: one file per worker and one of the controller, in JSON lines, rotated.

- Holds: the files, the capture of printed and logged lines while a job is done, the controller's events, reading them.
- Does not hold: what compiled code and other processes print (`report/output_log.py`, Ray's own logs), and anything
  that a run reads back: logs may be deleted at any time.
- Start reading at: `log_file.py`.
"""
