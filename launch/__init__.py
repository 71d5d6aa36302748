"""Commands: flags to a config, a config to one call."""
