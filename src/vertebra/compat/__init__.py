"""Vertebra under other libraries' names."""
