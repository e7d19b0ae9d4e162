"""The commands of the runtime, one module each, thin over calls that do the same."""
