"""Where otpy meets the system, the interpreter and other code: one file for each root of faults."""
