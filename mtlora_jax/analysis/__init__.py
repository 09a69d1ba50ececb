"""Counts and tables: parameters, multiply-accumulates, the tables of the paper."""
