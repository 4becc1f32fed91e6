"""The same API in other styles, for the benchmarks and the differential test."""
