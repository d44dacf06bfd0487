import contextlib

from frostline import children, jobs

with contextlib.suppress(KeyboardInterrupt):
    children.serve(jobs.work)
