"""Files, locks, processes and the machine: what both packages need and no benchmark knows of."""
