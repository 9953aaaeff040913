"""fedit beside its peers and the machine's limits: ``python -m benchmarks``, ``--quick`` for the short run."""
