"""Commands: each turns flags into a config and calls one function with it."""
