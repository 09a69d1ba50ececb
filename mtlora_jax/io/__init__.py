"""Reading and writing files: one module per kind, with the errors for users. Needs no JAX."""
