"""Tools that make what the package ships. Not needed to run it."""
