"""Measurements on this machine, each as a ratio to a reference that is measured in the same run.

``python -m benchmarks`` (``make bench``); how to read what it prints is in docs/benchmarks.md.
"""
