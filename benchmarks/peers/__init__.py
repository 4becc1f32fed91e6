"""The same API in other styles, each at its best: what the benchmarks and the differential test compare with."""
