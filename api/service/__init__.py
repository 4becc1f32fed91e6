"""Routes that belong to no resource: probes, metrics, and read-after routing."""
