"""Models by name, and bundles on a Hub: what is fetched, verified, and published.

`huggingface_hub` does the talking (extra `[hub]`). It is imported when something is fetched, so
that the runtime works without it.
"""
