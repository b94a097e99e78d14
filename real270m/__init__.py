"""The real Gemma 3 270M, for tests and benchmarks: fetched into a cache, never redistributed; `fetch`, `check`."""
