"""A process that holds the lease of a run in a bucket until it reads a line: `python holder.py PATH SECONDS`."""

import sys

from fot_jax.storage.lease import Lease

if __name__ == "__main__":
    lease = Lease(sys.argv[1], seconds=float(sys.argv[2]))
    print("held", flush=True)
    sys.stdin.readline()
    lease.release()
