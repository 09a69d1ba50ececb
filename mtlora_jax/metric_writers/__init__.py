"""Outputs of a run: lines on the terminal, log.jsonl, TensorBoard events, Weights & Biases, a trace."""

from mtlora_jax.console import console, print_columns, print_parameters, print_scores, print_table
from mtlora_jax.metric_writers.profiler import Profiler, memory
from mtlora_jax.metric_writers.timer import DataWaitTimer, StepTimer
from mtlora_jax.metric_writers.writer import MetricWriter, finite_or_none

__all__ = [
    "DataWaitTimer",
    "MetricWriter",
    "Profiler",
    "StepTimer",
    "console",
    "finite_or_none",
    "memory",
    "print_columns",
    "print_parameters",
    "print_scores",
    "print_table",
]
