"""Timed check of the project on a machine with a GPU, in stages.

Each stage is a process with a time limit. `bash tools/lab/gpu_check/run.sh look1` runs them, the
most important ones first, and writes each number to $OUT as soon as it is measured. `DRY=1` runs
them on a CPU with sizes that take seconds.
"""
