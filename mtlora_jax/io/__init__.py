"""Files of users and of runs: the one place where each kind is opened, and where what is wrong with it is told. Needs no JAX."""
