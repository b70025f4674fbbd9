"""Parts that more than one family is built from: one layer a file."""
