"""One loop each: what is done with a model, the same from Python, the shell and elsewhere."""
