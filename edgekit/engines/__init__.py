"""The engines that execute a compiled model, one a file: what each writes, and how the host runs it."""
