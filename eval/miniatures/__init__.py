"""Miniature files of the benchmarks in their published layouts, to try a run and to test the loaders.

Each module has `write_miniature(folder)`, which writes the files of its benchmarks below `folder` and returns the
[`BenchmarkArguments`] that open them, as paths relative to `folder`. Everything is about a small number: it stands in
the texts, and it is the shade of gray of the images.
"""
