"""Doors for labelling tools on the same server: Label Studio and X-AnyLabeling."""
