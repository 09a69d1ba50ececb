"""What a run writes down and shows: lines on the terminal, log.jsonl, TensorBoard events, Weights & Biases, a trace."""

from mtlora_jax.records.log import Records, finite_or_none
from mtlora_jax.records.machine import Trace, memory
from mtlora_jax.records.speed import InputWait, Speed
from mtlora_jax.records.tables import console, print_columns, print_parameters, print_scores, print_table

__all__ = [
    "InputWait",
    "Records",
    "Speed",
    "Trace",
    "console",
    "finite_or_none",
    "memory",
    "print_columns",
    "print_parameters",
    "print_scores",
    "print_table",
]
