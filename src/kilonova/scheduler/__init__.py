"""Which host takes a server, and why not the others: pure decisions on columns of what is known of hosts."""

import os

# NumPy's linear algebra, which nothing here uses, would make a thread a core.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
