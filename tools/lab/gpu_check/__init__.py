"""The prepared check for a machine with a GPU: stages, each a process with its own time limit.

`bash tools/lab/gpu_check/run.sh look1` runs them in order of value and writes every number to $OUT
the moment it is measured. `DRY=1` runs them on a CPU at sizes that take seconds.
"""
