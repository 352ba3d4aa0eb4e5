"""Faults provoked and counted: nothing is lost, nothing wrong is used, what is said and the exit code are right.

Here faults are put where they fall: at every write a program makes, at random moments, into every file of a cache.
Single ones are in the tests of each module (`test_storage`, `test_models`, `test_pipeline`, ...); each file here says
which, and does not repeat them.
"""
