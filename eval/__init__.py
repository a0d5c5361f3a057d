"""Evaluation: metrics, benchmarks, baselines and reports."""
