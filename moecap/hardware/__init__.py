"""Hardware: what devices are rated for (catalogue), what a node has (detect), what it really reaches (calibrate)."""
